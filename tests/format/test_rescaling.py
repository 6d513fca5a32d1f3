"""Every codec with its codes fixed: where it starts, its derivatives, what is stored, refusals."""

import pytest
import torch
from torch import Tensor

from qdc.errors import InvalidPipeline
from qdc.format.codec import Codec, Lowered
from qdc.passes.aqlm_lower import AqlmLower
from qdc.passes.arb_lower import ArbLower
from qdc.passes.bpdq_lower import BpdqLower
from qdc.passes.daq_lower import DaqLower
from qdc.passes.engine_lower import EngineLower
from qdc.passes.gguf_lower import GgufLower
from qdc.passes.gptq_lower import GptqLower
from qdc.passes.pb_llm_lower import PbLlmLower
from qdc.passes.pt2_lower import Pt2Lower
from qdc.passes.quip_lower import QuipLower
from qdc.passes.rtn_lower import RtnLower
from qdc.passes.sbvr_lower import SbvrLower
from qdc.passes.sdq_allocate import Oversampling
from qdc.passes.sdq_lower import SdqLower
from qdc.passes.slim_lower import SlimLower
from qdc.passes.trellis_lower import TrellisLower
from qdc.passkit import Lowering
from tests.support.partitions import lowered
from tests.support.units import annotate_all, correlated_moment, make_unit, noise, put_statistics

ROWS, COLUMNS = 6, 136
CASES: list[Lowering] = [
    DaqLower(),
    DaqLower(scale_bits=8),
    RtnLower(),
    GptqLower(zero="packed"),
    EngineLower(),
    Pt2Lower(),
    ArbLower(),
    PbLlmLower(),
    SlimLower(),
    QuipLower(),
    TrellisLower(window=8),
    SdqLower(),
    BpdqLower(),
    SbvrLower(),
    AqlmLower(),
]
STEP = 0.01


def through(step: Lowering) -> tuple[Codec, dict[str, Tensor]]:
    """The codec of a layer that went through a lowering, and its working tensors."""
    unit = make_unit(step, {"q": noise(ROWS, COLUMNS)})
    put_statistics(unit, correlated_moment(COLUMNS), (2, 2))
    annotate_all(
        unit, Oversampling(length=160, levels="ternary", sd_scale=0.9, p_scale=0.9, p_cut=0.5)
    )
    step.run(unit)
    note = unit.graph.require("q", Lowered)
    return note.codec, note.working(unit.tensors)


@pytest.mark.parametrize("step", CASES, ids=str)
def test_it_starts_where_it_was_and_derivatives_are_those_of_what_is_stored(step: Lowering) -> None:
    codec, working = through(step)
    form = codec.rescaling()
    fixed, scales = form.fixed(working), form.scales(working)
    before = codec.dense(working)
    torch.testing.assert_close(form.dense(fixed, scales), before, rtol=1e-5, atol=1e-6)
    again = form.working(working, scales)
    torch.testing.assert_close(codec.dense(again), before, rtol=1e-3, atol=1e-4)
    assert {s: t.dtype for s, t in again.items()} == {s: t.dtype for s, t in working.items()}

    pull = noise(ROWS, COLUMNS, 1)
    leaves = {suffix: tensor.requires_grad_() for suffix, tensor in scales.items()}
    torch.autograd.backward((form.dense(fixed, leaves) * pull).sum())
    ways = {s: t.detach().abs().mean() * torch.ones_like(t) for s, t in scales.items()}
    expected = sum(float((t.grad * ways[s]).sum()) for s, t in leaves.items() if t.grad is not None)
    there, back = (
        {s: t.detach() + sign * STEP * ways[s] for s, t in scales.items()} for sign in (1, -1)
    )
    moved = form.dense(fixed, there) - form.dense(fixed, back)
    assert float((moved * pull).sum()) / (2 * STEP) == pytest.approx(expected, rel=0.02)
    assert expected

    changed = form.working(working, there)
    codec.pack_exactly(changed, "q")
    near = (codec.dense(changed) - form.dense(fixed, there)).norm()
    assert float(near) < 0.02 * float(before.norm())
    assert not torch.equal(codec.dense(changed), before)


@pytest.mark.parametrize("step", [RtnLower(), TrellisLower(window=8), DaqLower()], ids=str)
def test_scales_beyond_fp16_are_refused(step: Lowering) -> None:
    codec, working = through(step)
    form = codec.rescaling()
    scales = {suffix: tensor * 1e9 for suffix, tensor in form.scales(working).items()}
    with pytest.raises(OverflowError, match="not finite in fp16"):
        form.working(working, scales)


def test_blocks_of_ggml_are_refused() -> None:
    unit, _ = lowered(GgufLower, noise(ROWS, 256), correlated_moment(256))
    with pytest.raises(InvalidPipeline, match="layers stored as ggml cannot be distilled"):
        unit.graph.require("q", Lowered).codec.rescaling()
