from pathlib import Path

import pytest

from tests.support.texts import TEXT
from tests.support.threads import one_thread

__all__ = ["one_thread"]


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of text to calibrate on."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path
