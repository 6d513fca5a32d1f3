"""What ranks write reaches all ranks; who fails ends all; sums are those of one process."""

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from qdc import Annotation
from qdc.distributed.exchange import Changes
from qdc.distributed.failure import BUG, FailedElsewhere, status_of
from qdc.distributed.handshake import from_first, same, total
from qdc.distributed.reduction import Part, accumulate
from qdc.distributed.world import World
from qdc.errors import InvalidCheckpoint, InvalidGraph, QdcError
from qdc.ir.annotations import Factor, Kept, Moment, Orders
from qdc.ir.graph import Node
from qdc.ir.verify import verify
from qdc.numerics.asymmetry import CrossMomentAccumulator
from qdc.numerics.moment import MomentAccumulator
from qdc.passes.daq_lower import Daq, DaqLower
from qdc.passes.pack import Pack
from qdc.passes.rtn_lower import Rtn, RtnLower
from qdc.passes.sensitivity import Sensitivity
from qdc.pipeline.registry import standard_registry
from qdc.streaming.unit import Unit
from tests.support.ranks import on_ranks
from tests.support.units import annotate_all, correlated_moment, make_unit, noise

WEIGHTS = {"q": noise(16, 32, 1), "k": noise(8, 32, 2), "v": noise(24, 32, 3), "o": noise(8, 16, 4)}
TAGS = standard_registry().annotations()


def unit_of(world: World, step: object = None, weights: dict[str, Tensor] = WEIGHTS) -> Unit:
    return make_unit(step or RtnLower(), weights, world=world, tags=TAGS)  # type: ignore[arg-type]


def text(unit: Unit) -> dict[str, dict[str, object]]:
    """Everything on the nodes, as data."""
    return {
        node.name: {slot: n.model_dump() for slot, n in unit.graph.annotations(node.name).items()}
        for node in unit.graph
    }


def moments(batches: list[Tensor]) -> tuple[MomentAccumulator, CrossMomentAccumulator]:
    moment, cross = MomentAccumulator(6), CrossMomentAccumulator(6, rows=3)
    for batch in batches:
        add(moment, cross, batch)
    return moment, cross


def add(moment: MomentAccumulator, cross: CrossMomentAccumulator, batch: Tensor) -> None:
    moment.add(batch, batch[:, 0].abs())
    cross.add(batch, batch.roll(1, 0))
    cross.add_residual(batch, batch[:, :3], batch[:, 3:])


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("owned", [(0,), (0, 1), (1,)])
@pytest.mark.parametrize("narrow", [False, True])
def test_sums_over_ranks_are_those_of_one(
    ranks: int, ordered: bool, owned: tuple[int, ...], narrow: bool
) -> None:
    """To the bit in turns; in fp64, or in fp32 where that is asked for, when they are reduced."""
    rounding = 1e-14 if ordered or not narrow else 1e-5
    owned = tuple(rank for rank in owned if rank < ranks) or (0,)
    batches = [10.0**place * noise(11, 6, place) for place in range(5)]
    expected = [sums.sums() for sums in moments(batches)]

    def work(world: World) -> list[list[Tensor]]:
        found = moments([])

        def add_mine() -> None:
            for batch in batches[world.part(len(batches))]:
                add(*found, batch)

        accumulate(world, [Part(owned, found, narrow)], add_mine)
        return [each.sums() for each in found]

    for rank, found in enumerate(on_ranks(ranks, work, ordered=ordered)):
        if rank not in owned:
            continue
        for mine, right in zip(found, expected, strict=True):
            for one, other in zip(mine, right, strict=True):
                loose = rounding * float(other.abs().max())
                torch.testing.assert_close(one, other, rtol=rounding, atol=loose)
                assert not ordered or torch.equal(one, other)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_lowered_layers_are_the_same_on_all_ranks(ranks: int) -> None:
    def work(world: World) -> tuple[dict[str, dict[str, object]], list[Tensor], list[str]]:
        unit = unit_of(world)
        unit.step.run(unit)
        Pack().run(unit)
        unit.settle()
        verify(unit.graph, unit.tensors)
        dense = [unit.current(node) for node in unit.layers()]
        return text(unit), dense, [str(remark) for remark in unit.remarks]

    ((alone, dense, remarks),) = on_ranks(1, work)
    for found, weights, said in on_ranks(ranks, work):
        assert found == alone
        assert said == remarks
        assert all(map(torch.equal, weights, dense))


def test_scratch_stays_with_its_owners_and_is_fetched_where_all_ask() -> None:
    weights = {name: WEIGHTS[name] for name in ("q", "k", "v")}

    def work(world: World) -> list[bool]:
        unit = unit_of(world, Sensitivity(), weights)
        moment = unit.put("x:moment", correlated_moment(32))
        annotate_all(unit, Moment(tensor=moment, samples=1, tokens=1, masked=0.5))
        unit.step.run(unit)
        verify(unit.graph, unit.tensors)
        notes = [unit.graph.require(node.name, Factor) for node in unit.layers()]
        here = [unit.tensors.is_here(note.tensor) for note in notes]
        if not all(here):
            with world.by_itself(), pytest.raises(InvalidGraph, match="is on rank"):
                unit.get(notes[here.index(False)].tensor)
        for note in notes:
            upper = unit.get(note.tensor)
            assert torch.equal(upper, upper.triu())
            assert unit.tensors.is_here(note.tensor)
        return here

    # Three layers of one stage: the last of four ranks owns none.
    assert on_ranks(4, work) == [[True] * 3, [True] * 3, [True] * 3, [False] * 3]


def test_lowering_reads_its_owners_tensors() -> None:
    def work(world: World) -> dict[str, dict[str, object]]:
        weights = {name: WEIGHTS[name] for name in ("q", "k", "v")}
        unit = unit_of(world, DaqLower(asymmetry=0), weights)

        def moment(nodes: tuple[Node, ...]) -> None:
            ref = unit.put("x:moment", correlated_moment(32))
            for node in nodes:
                unit.annotate(node, Moment(tensor=ref, samples=1, tokens=1, masked=0.5))

        unit.share(unit.layers(), moment)
        Sensitivity().run(unit)
        annotate_all(unit, Orders(blocks=(2,), widths=(32,)))
        unit.step.run(unit)
        assert all(unit.graph.require(n.name, Daq).error is not None for n in unit.layers())
        return text(unit)

    alone, *_ = on_ranks(1, work)
    assert on_ranks(4, work) == [alone] * 4


def test_layers_that_fail_on_any_rank_are_reported_together() -> None:
    broken = {**WEIGHTS, "k": WEIGHTS["k"] * 1e6, "o": WEIGHTS["o"] * 1e6}

    def work(world: World) -> None:
        unit = unit_of(world, None, broken)
        unit.step.run(unit)

    for ranks in (1, 2, 3):
        with pytest.raises(InvalidCheckpoint) as caught:
            on_ranks(ranks, work)
        assert caught.value.where == ("%k", "%o")


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failure_inside_shared_work_is_raised_once(failing: int) -> None:
    heard: list[Exception] = []

    def work(world: World) -> None:
        unit = unit_of(world)

        def fail(nodes: tuple[Node, ...]) -> None:
            if world.rank == failing:
                raise ValueError("a bug of one rank")

        try:
            unit.share(unit.layers(), fail)
        except FailedElsewhere as error:
            heard.append(error)
            raise

    with pytest.raises(ValueError, match="of one rank"):
        on_ranks(3, work)
    assert [str(error) for error in heard] == [
        f"error[QDC501] the compile has failed on rank {failing}, which says why"
    ] * 2
    assert {error.exit_code for error in heard if isinstance(error, FailedElsewhere)} == {2}


def test_of_several_failures_the_first_ranks_is_shown() -> None:
    def work(world: World) -> None:
        if world.rank:
            raise QdcError(f"mistake of rank {world.rank}")
        world.agree()

    with pytest.raises(QdcError, match="rank 1"):
        on_ranks(3, work)


def test_mistakes_and_bugs_have_their_exit_codes() -> None:
    assert FailedElsewhere(0, status_of(QdcError("x"))).exit_code == 1
    assert FailedElsewhere(0, status_of(FileNotFoundError())).exit_code == 1
    assert FailedElsewhere(0, status_of(InvalidGraph("x"))).exit_code == 2
    assert FailedElsewhere(0, status_of(ZeroDivisionError())).exit_code == 2
    assert FailedElsewhere(0, BUG).exit_code == 2


def test_where_ranks_differ_the_first_ones_word_counts() -> None:
    """A pass that knows nothing of ranks, with results that depend on the machine."""

    def work(world: World) -> tuple[dict[str, dict[str, object]], Tensor, list[str]]:
        unit = unit_of(world, RtnLower(group=8))
        q, k, v, o = unit.layers()
        unit.annotate(q, Kept(reason="equal"))
        if world.rank == 1:
            unit.annotate(k, Kept(reason="only here"))
        ref = unit.put("v:moment", correlated_moment(32) * (1 + world.rank))
        unit.annotate(v, Moment(tensor=ref, samples=1, tokens=1, masked=0.5))
        unit.annotate(o, lowered(unit, o, 1.0 + world.rank))
        unit.settle()
        verify(unit.graph, unit.tensors)
        moment = unit.get(unit.graph.require("v", Moment).tensor)
        assert torch.equal(moment, correlated_moment(32))
        remarks = [str(remark) for remark in unit.remarks]
        return text(unit), unit.current(unit.graph["o"]), remarks

    (expected, dense, nothing), *_ = on_ranks(1, work)
    assert nothing == []
    for found, weight, remarks in on_ranks(3, work):
        assert found == expected
        assert torch.equal(weight, dense)
        assert remarks == [f"note rtn-lower %{name} taken_from=rank 0" for name in "kvo"]


def lowered(unit: Unit, node: Node, factor: float) -> Rtn:
    note, working = RtnLower().lower(unit, node)
    working = {**working, "scale": working["scale"] * factor}
    refs = tuple(unit.put(f"{node.name}:{s}", t) for s, t in working.items())
    return note.model_copy(update={"tensors": refs, "suffixes": tuple(working)})


@pytest.mark.parametrize("ranks", [1, 2])
def test_shared_work_cannot_meet_others(ranks: int) -> None:
    def work(world: World) -> None:
        unit = unit_of(world)
        unit.share(unit.layers(), lambda nodes: unit.share(nodes, lambda inner: None))

    with pytest.raises(RuntimeError, match="cannot be shared again"):
        on_ranks(ranks, work)


class Secret(Annotation):
    """Written by a pass that does not say so."""

    tag: ClassVar[str] = "secret"

    def text(self) -> str:
        return "?"


def test_an_annotation_that_nobody_declares_is_refused() -> None:
    def work(world: World) -> None:
        unit = unit_of(world)

        def write(nodes: tuple[Node, ...]) -> None:
            for node in nodes:
                unit.annotate(node, Secret())

        unit.share(unit.layers(), write)

    with pytest.raises(InvalidGraph, match="@secret, which it does not declare"):
        on_ranks(2, work)


def test_a_message_with_an_annotation_that_nobody_declares_is_refused() -> None:
    message = Changes([("v", Secret())]).to_bytes()
    with pytest.raises(InvalidGraph, match="no pass says"):
        Changes.from_bytes(message, standard_registry().annotations())


def test_processes_that_would_not_do_the_same_are_refused() -> None:
    def work(world: World) -> None:
        same(world, {"pipeline": "rtn,pack", "checkpoint": str(world.rank // 2)})

    on_ranks(2, work)
    with pytest.raises(QdcError, match="do not agree on: checkpoint") as caught:
        on_ranks(4, work)
    assert caught.value.where == ("rank 2", "rank 3")


def test_an_option_of_one_process_alone_is_refused_in_all() -> None:
    def work(world: World) -> None:
        world.ordered = world.rank == 0
        same(world, {})

    with pytest.raises(QdcError, match="do not agree on: --deterministic-reduce"):
        on_ranks(2, work)


def test_totals_and_what_the_first_makes() -> None:
    found = on_ranks(3, lambda world: (total(world, world.rank, 5), from_first(world, lambda: "é")))
    assert found == [([3, 15], "é")] * 3
