"""The embedded model end to end in the interpreter: every emitted layer, and the logits."""

from pathlib import Path

import pytest
import torch

import qdc
import tests.support.interpreter  # noqa: F401
from qdc.backends.triton.checking import SWITCH, Checked
from tests.support.checkpoints import EMBEDDED
from tests.support.compiles import compile_tiny

QUICK = (
    "quantize-vocab,stages(calibrate-mcs,sensitivity,abmp-allocate{ratio=0.4},"
    "daq-lower{fit=greedy compensation=none feedback=false sweeps=1}),pack"
)
"""The format of ``default``, fitted in a hurry: what is tested is how it runs."""


@pytest.mark.slow
def test_every_emitted_layer_and_the_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    report = compile_tiny(EMBEDDED, out, QUICK, backend="triton")
    tokens = torch.randint(5, 2000, (1, 7), generator=torch.Generator().manual_seed(0))
    wanted = qdc.load(out, backend="reference")(tokens).double()
    plain = qdc.load(out, dtype=torch.bfloat16, backend="reference")(tokens).double()

    monkeypatch.setenv(SWITCH, "1")
    packed = qdc.load(out, backend="triton")
    checked = [part for part in packed.modules() if isinstance(part, Checked)]
    labels = [path for part in checked for path in part.label.split(", ")]
    assert len(labels) == len(set(labels)) == len(report.layers) + 2
    assert len(checked) == 6 * 4 + 2
    # The check compares every layer with its formula, on the inputs that the model gives it.
    found = packed(tokens).double()
    # Plain bf16 rounds each weight once. Packed, a scale and the input that it is folded into are
    # rounded instead: twice as many roundings in each product, the same everywhere else.
    assert (found - wanted).norm() < 2 * (plain - wanted).norm()
