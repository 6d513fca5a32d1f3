"""One compiled model, to be copied or looked at."""

from pathlib import Path

import pytest

from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny
from tests.support.threads import one_thread

__all__ = ["artifact", "one_thread"]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("load")
    write_checkpoint(folder / "model", d_model=32, mlp_hidden_size=160, vocab=2048)
    compile_tiny(folder / "model", folder / "out")
    return folder / "out"
