from pathlib import Path

import pytest

from qdc.report.model import CompileReport
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny
from tests.support.threads import one_thread

__all__ = ["one_thread"]

MIXED = "stages(calibrate-mcs,sensitivity,abmp-allocate{ratio=0.5},daq-lower),pack"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint whose last linear has three blocks, the last of them ragged."""
    folder = tmp_path_factory.mktemp("report") / "model"
    return write_checkpoint(folder, d_model=64, mlp_hidden_size=320)


@pytest.fixture(scope="session")
def compiled(model: Path) -> CompileReport:
    """The model, compiled to mixed orders, with its report."""
    return compile_tiny(model, model.with_name("out"), MIXED, write_report=True)
