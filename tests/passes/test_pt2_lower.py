"""pt2-lower: the published steps against a loop, its options, the shared loop, what it refuses."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from qdc.errors import InvalidCheckpoint, MissingAnnotation
from qdc.ir.annotations import Factor
from qdc.ir.cross import CrossMoment
from qdc.ir.verify import verify
from qdc.numerics.asymmetry import asymmetry_term
from qdc.numerics.blocks import block_slices
from qdc.numerics.error import relative_output_error
from qdc.numerics.factor import factorize
from qdc.numerics.feedback import residual_cost
from qdc.numerics.ternary import fit_ternary
from qdc.passes.pack import Pack
from qdc.passes.pt2_lower import Pt2, Pt2Lower, reads_gated_product
from qdc.pipeline.builder import build_plan
from qdc.pipeline.plan import check_order
from qdc.pipeline.registry import standard_registry
from qdc.streaming.unit import Unit
from tests.support.graphs import two_blocks
from tests.support.units import annotate_all, correlated_moment, make_unit, noise, put_statistics

COLUMNS = 160
PUBLISHED: dict[str, Any] = {
    "compensation": "diag",
    "feedback": False,
    "update": "alternating",
    "keep": "previous",
    "aga": "moment",
    "fallback": "block",
}
DRIFT: dict[str, Any] = {"asymmetry": 0.25, "target": "sequential", "carry": "blocks"}


def lower(
    weights: dict[str, Tensor], moment: Tensor, cross: Tensor | None = None, **options: Any
) -> Unit:
    unit = make_unit(Pt2Lower.model_validate(options), weights)
    put_statistics(unit, moment, (2,) * -(-moment.shape[0] // 128))
    if cross is not None:
        annotate_all(unit, CrossMoment(tensor=unit.put("x:cross-moment", cross), drift=0.1))
    unit.step.run(unit)
    verify(unit.graph, unit.tensors, after="pt2-lower")
    return unit


def result(unit: Unit, name: str = "q") -> Tensor:
    note = unit.graph.require(name, Pt2)
    return note.codec.dense(note.working(unit.tensors))


def loss(weight: Tensor, dense: Tensor, moment: Tensor) -> float:
    return residual_cost(weight, dense, factorize(moment).upper)


def published(weight: Tensor, moment: Tensor, cross: Tensor, group: int) -> Tensor:
    """The release, block by block, in numpy: related-systems.md 2 and 18."""
    upper = factorize(moment).upper
    term = asymmetry_term(cross, upper, 0.25).double().numpy()
    wide, rest = upper.double().numpy(), weight.double().numpy().copy()
    dense = np.empty_like(rest)
    for part in block_slices(weight.shape[1], group):
        block, metric = rest[:, part].copy(), moment[part, part].double().numpy()
        codes = fit_ternary(
            torch.from_numpy(block).float(), update="alternating", keep="previous"
        ).codes.double().numpy()  # fmt: skip
        for row, code in enumerate(codes):
            system = np.stack([code, np.ones(len(code))])
            answer = np.linalg.solve(system @ metric @ system.T, system @ metric @ block[row])
            dense[row, part] = answer @ system
        later = slice(part.stop, None)
        error = (block - dense[:, part]) / wide[part, part].diagonal()
        rest[:, later] -= error @ wide[part, later] - block @ term[part, later]
    return torch.from_numpy(dense)


def test_the_preset_is_the_release_step_by_step() -> None:
    weight, moment = noise(12, COLUMNS), correlated_moment(COLUMNS)
    cross = correlated_moment(COLUMNS, 1) / 50
    found = result(lower({"q": weight}, moment, cross, group=32, **PUBLISHED, **DRIFT)).double()
    wanted = published(weight, moment, cross, 32)
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=1e-3 * float(weight.abs().max()))
    whole = str(build_plan("pt2", standard_registry()))
    step = str(Pt2Lower.model_validate({**PUBLISHED, **DRIFT, "spare": "products"}))
    assert step in whole


@pytest.mark.parametrize("seed", range(3))
def test_each_part_of_the_shared_loop_is_worth_its_place(seed: int) -> None:
    """Direction of related-systems.md A3 to A5: exact, column feedback, refits, sweeps."""
    weight, moment = noise(24, 2 * COLUMNS, seed), correlated_moment(2 * COLUMNS, seed)
    steps: list[dict[str, Any]] = [
        {**PUBLISHED, "aga": "none", "fallback": "row", "compensation": "none"},
        {**PUBLISHED, "aga": "none", "fallback": "row"},
        {**PUBLISHED},
        {**PUBLISHED, "compensation": "exact"},
        {"rounds": 0, "sweeps": 0},
        {"rounds": 0},
        {},
    ]
    losses = [loss(weight, result(lower({"q": weight}, moment, **s)), moment) for s in steps]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.5 * losses[2]
    ordered = result(lower({"q": weight}, moment, reorder="similarity"))
    assert loss(weight, ordered, moment) < 0.5 * losses[2]


@pytest.mark.parametrize("columns", [32, 8, 5])
def test_reordering_comes_back_in_place(columns: int) -> None:
    """With one block an order is nothing but a name for each column."""
    weight, moment = noise(6, columns), correlated_moment(columns)
    for options in ({}, {**PUBLISHED, "aga": "schur"}):
        plain = lower({"q": weight}, moment, **options)
        ordered = lower({"q": weight}, moment, reorder="similarity", **options)
        torch.testing.assert_close(result(ordered), result(plain), rtol=1e-3, atol=1e-4)
    note = ordered.graph.require("q", Pt2)
    assert sorted(note.working(ordered.tensors)["permutation"].tolist()) == list(range(columns))
    assert note.codec.reordered
    assert "reordered" in note.text()


def test_what_is_reordered_reads_the_moment_of_its_own_columns() -> None:
    """Blocks of the columns of two directions, whose inputs are not correlated: as if apart."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(10, 1, generator=generator)
    even = base + 0.1 * torch.randn(10, 16, generator=generator)
    odd = torch.randn(10, 16, generator=generator)
    weight, moment = torch.empty(10, 32), torch.eye(32)
    options: dict[str, Any] = {
        "group": 16,
        "aga": "moment",
        "feedback": False,
        "compensation": "none",
    }
    weight[:, ::2], weight[:, 1::2] = even, odd
    moment[::2, ::2] = correlated_moment(16)
    unit = lower({"q": weight}, moment, reorder="similarity", **options)
    note = unit.graph.require("q", Pt2)
    order = note.working(unit.tensors)["permutation"].tolist()
    assert order == [*range(0, 32, 2), *range(1, 32, 2)]
    alone = lower({"q": even}, correlated_moment(16), **options)
    torch.testing.assert_close(result(unit)[:, ::2], result(alone))


def test_a_row_that_cannot_be_aligned_stays_or_its_block_does() -> None:
    weight = noise(5, 64)
    weight[2, :32] = 0.25  # a block of one level
    moment = correlated_moment(64)
    options: dict[str, Any] = {"feedback": False, "compensation": "none", "group": 32}
    fitted = lower({"q": weight}, moment, **options)
    row = lower({"q": weight}, moment, aga="moment", **options)
    block = lower({"q": weight}, moment, aga="moment", fallback="block", **options)
    assert [u.graph.require("q", Pt2).unaligned for u in (fitted, row, block)] == [None, 1, 5]
    assert row.graph.require("q", Pt2).text().endswith("aligned but for 1 rows of blocks")
    plain, by_row, by_block = (result(u) for u in (fitted, row, block))
    assert torch.equal(by_block[:, :32], plain[:, :32])
    assert torch.equal(by_row[2, :32], plain[2, :32])
    assert not torch.equal(by_row[0, :32], plain[0, :32])
    assert torch.equal(by_row[:, 32:], by_block[:, 32:])


def test_layers_that_read_a_gated_product_are_spared() -> None:
    graph = two_blocks()
    spared = {node.name for node in graph.linears() if reads_gated_product(graph, node)}
    assert spared == {"h0.down", "h1.down"}
    step = Pt2Lower.model_validate({"reorder": "similarity", "spare": "products"})
    reordered = {node.name for node in graph.linears() if step.codec(graph, node).reordered}
    assert reordered == {node.name for node in graph.linears()} - spared
    every = Pt2Lower.model_validate({"reorder": "similarity"})
    assert all(every.codec(graph, node).reordered for node in graph.linears())


def test_needs_are_known_before_anything_runs() -> None:
    registry = standard_registry()
    with pytest.raises(MissingAnnotation, match="pt2-lower reads @cross-moment"):
        check_order(
            build_plan("stages(calibrate-mcs,sensitivity,pt2-lower{asymmetry=1}),pack", registry)
        )
    for name in ("pt2", "pt2-ssr", "pt2-shared"):
        check_order(build_plan(name, registry))


def test_ignored_options_are_refused() -> None:
    for options, why in (
        ({"fallback": "block"}, "aga=none does not read fallback"),
        ({"spare": "products"}, "both are off"),
        ({"iterations": 0, "update": "alternating"}, "reads neither update nor keep"),
        ({"iterations": 0, "keep": "previous"}, "reads neither update nor keep"),
        ({"carry": "blocks"}, "target=whole does not read carry"),
        ({"target": "sequential"}, "asymmetry is 0"),
        ({"feedback": False, "rounds": 1}, "does not read rounds"),
    ):
        with pytest.raises(ValidationError, match=why):
            Pt2Lower.model_validate(options)


@pytest.mark.parametrize("options", [{}, {**PUBLISHED, "reorder": "similarity"}])
def test_dead_inputs_zeros_and_single_rows(options: dict[str, Any]) -> None:
    weight, moment = noise(6, 48), correlated_moment(48)
    dead = [5, 40]
    moment[dead], moment[:, dead] = 0, 0
    weight[3] = 0
    loud = weight.clone()
    loud[:, dead] = 1e3
    unit = lower({"q": loud}, moment, group=16, **options)
    assert unit.graph.require("q", Factor).dead == tuple(dead)
    assert torch.equal(result(unit), result(lower({"q": weight}, moment, group=16, **options)))
    for shape in ((1, 48), (2, 3)):
        zero = lower({"q": torch.zeros(shape)}, correlated_moment(shape[1]), **options)
        assert not result(zero).any()
        one = lower({"q": noise(*shape)}, correlated_moment(shape[1]), **options)
        assert result(one).isfinite().all()


def test_what_three_levels_hold_comes_back_and_is_stored() -> None:
    values = torch.arange(12 * COLUMNS).reshape(12, COLUMNS) * 7 % 3 / 4 - 0.125
    weights = {"h0.q": values[:4], "h0.k": values[4:]}
    unit = lower(weights, torch.eye(COLUMNS), group=32, reorder="similarity")
    assert all(unit.graph.require(name, Pt2).error == 0 for name in weights)
    codec = unit.graph.require("h0.q", Pt2).codec
    expected = result(unit, "h0.q")
    torch.testing.assert_close(expected, values[:4])
    Pack().run(unit)
    stored = {
        name.rpartition(".")[2]: tensor
        for name, tensor in unit.tensors.held()
        if name.startswith("model.h0.q.")
    }
    # 32 bytes of codes, 5 scales, 5 shifts a row; the order of the columns
    assert sum(t.nbytes for t in stored.values()) == codec.nbytes == 4 * (32 + 20) + 2 * COLUMNS
    assert torch.equal(codec.dense(codec.unpack(stored)), expected)


def test_the_error_is_measured_and_is_the_same_again() -> None:
    weight, moment = noise(6, COLUMNS), correlated_moment(COLUMNS)
    first, second = (lower({"q": weight}, moment, **PUBLISHED) for _ in range(2))
    assert torch.equal(result(first), result(second))
    expected = relative_output_error(weight, result(first), moment)
    assert first.graph.require("q", Pt2).error == pytest.approx(expected, rel=1e-12)
    assert expected > 0


def test_weights_beyond_fp16_are_refused_by_name() -> None:
    weights = {"q": noise(2, 16) * 1e6, "k": noise(2, 16)}
    with pytest.raises(InvalidCheckpoint, match="weights do not fit fp16 scales") as caught:
        lower(weights, torch.eye(16))
    assert caught.value.where == ("%q",)
