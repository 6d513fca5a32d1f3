from pathlib import Path

import pytest

from tests.support.checkpoints import write_checkpoint
from tests.support.threads import one_thread

__all__ = ["one_thread"]

LINE = "def f{0}(x):\n    return x + {0}  # a line of code, long enough to fill windows of text\n"


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparing") / "model"
    return write_checkpoint(folder, d_model=64, mlp_hidden_size=96, n_layers=1)


@pytest.fixture(scope="package")
def held_out(model: Path) -> Path:
    """Six texts of about two windows of 16 tokens each."""
    path = model.with_name("held.jsonl")
    texts = (LINE.format(number).replace("\n", "\\n") for number in range(6))
    path.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts), encoding="utf-8")
    return path
