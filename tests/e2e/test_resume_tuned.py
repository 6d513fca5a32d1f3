"""A compile whose tokens are weighed and whose scales are tuned, interrupted and taken up again."""

from pathlib import Path
from typing import Any

import pytest
import torch

import qdc
from tests.support.checkpoints import write_checkpoint
from tests.support.threads import one_thread

__all__ = ["one_thread"]

PASSES = (
    "guide,stages(calibrate-cross{token-weights=guided},sensitivity,gptq-lower{group=16}),"
    "distill{rounds=2 batch=1 scale-rate=0.02 norm-rate=0.02 held-out=0.5},pack"
)


class Stopped(Exception):
    """Somebody pulled the plug."""


def test_the_same_bytes_after_interruptions(tmp_path: Path) -> None:
    model = write_checkpoint(
        tmp_path / "model", d_model=32, mlp_hidden_size=48, dtype=torch.float32
    )
    given: dict[str, Any] = {"samples": 8, "length": 16, "write_report": False}
    whole = qdc.compile(model, PASSES, out=tmp_path / "whole", **given)
    assert whole.distilled is not None
    assert whole.distilled.improved
    out = tmp_path / "out"
    for left in (10, 2):  # in the second region, and behind the tuning

        def stop(what: str, done: int, total: int, left: int = left) -> None:
            if what == "run the passes" and total - done == left:
                raise Stopped

        with pytest.raises(Stopped):
            qdc.compile(model, PASSES, out=out, progress=stop, resume=left == 2, **given)
        assert not out.exists()
    report = qdc.compile(model, PASSES, out=out, resume=True, **given)
    assert report.resumed == 2
    assert report.distilled == whole.distilled
    for path in sorted((tmp_path / "whole").iterdir()):
        assert path.read_bytes() == (out / path.name).read_bytes(), path.name
