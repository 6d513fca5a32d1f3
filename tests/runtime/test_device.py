from pathlib import Path

import pytest
import torch

from qdc.errors import QdcError
from qdc.runtime.device import find_device
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny


@pytest.mark.parametrize(("there", "found"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_cuda_where_it_is_there(
    there: bool, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert find_device("auto") == found


def test_other_names_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("cpu") == "cpu"
    for name, what in (("cuda", "sees no CUDA"), ("autp", "no device"), ("meta", "not supported")):
        with pytest.raises(QdcError, match=what):
            find_device(name)


def test_a_report_says_which_device_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = write_checkpoint(tmp_path / "m", d_model=32, mlp_hidden_size=48)
    report = compile_tiny(model, tmp_path / "out", "data-free", device="auto")
    assert report.device == "cpu"
