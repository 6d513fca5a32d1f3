import pytest

from tests.support.threads import one_thread

__all__ = ["one_thread"]

pytest.importorskip("llvmlite")
