from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.support.handovers import PACKED, native_artifact
from tests.support.threads import one_thread

__all__ = ["one_thread"]

Artifacts = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    """Compile a kind of native model, once for each pipeline; the folder is not to be changed."""

    @cache
    def compiled(kind: str, passes: str) -> Path:
        return native_artifact(tmp_path_factory.mktemp(kind), kind, passes)

    return compiled


@pytest.fixture(scope="session")
def encoder(artifacts: Artifacts) -> Path:
    """An artifact of BERT, whose head is tied to a quantized embedding."""
    return artifacts("bert", PACKED)
