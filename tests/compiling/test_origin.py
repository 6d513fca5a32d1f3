"""What a compile that goes on must have the same of."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qdc.checkpoint.folder import Checkpoint
from qdc.compiling.origin import identity
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import make_job


def test_bytes_depend_on_the_card_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_checkpoint(tmp_path / "model", d_model=32, mlp_hidden_size=48)
    job = make_job(model, tmp_path / "out", passes="rtn-lower,pack")
    assert "card" not in identity(job, None, "0", Checkpoint(model))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    found = identity(replace(job, device="cuda:1"), None, "0", Checkpoint(model))
    assert (found["device"], found["card"]) == ("cuda", "card 1")
