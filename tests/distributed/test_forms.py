"""Forms of lowered layers go to the ranks that read them, and to no other."""

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from qdc.distributed.world import World
from qdc.errors import InvalidGraph
from qdc.passes.pack import Pack
from qdc.passes.rtn_lower import RtnLower
from qdc.pipeline.registry import standard_registry
from qdc.streaming.unit import Unit
from tests.support.commands import python
from tests.support.ranks import on_ranks
from tests.support.units import make_unit, noise

WEIGHTS = {"q": noise(16, 32, 1), "k": noise(8, 32, 2), "v": noise(24, 32, 3), "o": noise(8, 16, 4)}
OWNED = ["v", "q", "k", "o"]
"""By rank, of four."""
TAGS = standard_registry().annotations()


def lowered(world: World, step: RtnLower | None = None) -> Unit:
    unit = make_unit(step or RtnLower(), WEIGHTS, world=world, tags=TAGS)
    unit.step.run(unit)
    return unit


def here(unit: Unit) -> str:
    """The layers whose weights stand in something that this rank has."""
    forms = unit._workspace.forms
    return "".join(name for name in WEIGHTS if all(map(unit.tensors.is_here, forms.of(name))))


def size(unit: Unit, names: str) -> int:
    return sum(ref.nbytes for name in names for ref in unit._workspace.forms.of(name))


def weights(unit: Unit) -> list[Tensor]:
    return [unit.current(node) for node in unit.layers()]


def test_a_form_goes_to_those_who_ask() -> None:
    """The second and the fourth of four ranks do; who has a form already does not get it again."""
    (alone,) = on_ranks(1, lambda world: weights(lowered(world)))

    def work(world: World) -> tuple[str, str, int, int]:
        unit = lowered(world)
        assert world.sent == 0
        before = here(unit)
        unit._workspace.forms.bring("qkv" if world.rank in (1, 3) else "")
        asked, sent = here(unit), world.sent
        # A form that was not sent is not there: nothing else is taken for it.
        for name in set(WEIGHTS) - set(asked):
            with world.by_itself(), pytest.raises(InvalidGraph, match="is on rank"):
                unit.current(unit.graph[name])
        assert all(map(torch.equal, weights(unit), alone))  # all ranks ask at once
        assert here(unit) == "qkvo"
        return before, asked, sent, size(unit, "kvkv") + size(unit, "q")

    before, asked, sent, due = zip(*on_ranks(4, work), strict=True)
    assert list(before) == OWNED
    assert asked == ("v", "qkv", "k", "qkvo")
    assert sum(sent) == due[0]


def test_a_new_form_takes_the_place_of_the_old_one() -> None:
    """Of the same name, on ranks that had the old one."""
    finer = RtnLower(bits=4)
    (alone,) = on_ranks(1, lambda world: weights(lowered(world, finer)))

    def work(world: World) -> str:
        unit = lowered(world)
        unit._workspace.forms.bring(WEIGHTS)
        assert here(unit) == "qkvo"
        finer.run(unit)
        found = here(unit)
        assert all(map(torch.equal, weights(unit), alone))
        return found

    assert on_ranks(4, work) == OWNED


def test_stored_forms_go_to_the_first_rank() -> None:
    def work(world: World) -> tuple[str, str, int, int]:
        unit = lowered(world)
        Pack().run(unit)
        before = here(unit)
        unit._workspace.forms.bring(WEIGHTS if world.first else ())
        return before, here(unit), world.sent, size(unit, OWNED[world.rank])

    before, after, sent, own = zip(*on_ranks(4, work), strict=True)
    assert list(before) == OWNED
    assert list(after) == ["qkvo", *OWNED[1:]]
    assert sent == (0, *own[1:])


class Everywhere(RtnLower):
    """A pass that reads what it has lowered on every rank."""

    name: ClassVar[str] = "everywhere"
    reads_all: ClassVar[bool] = True


def test_a_pass_that_may_read_everything_has_everything() -> None:
    assert on_ranks(4, lambda world: here(lowered(world, Everywhere()))) == ["qkvo"] * 4


def test_who_has_what_is_found_out_again() -> None:
    """As after an interruption, when all that is known is what lies in each rank's files."""

    def work(world: World) -> str:
        unit = lowered(world)
        for ref in unit._workspace.forms.of("k"):  # as if everybody had it
            unit.get(ref)
        unit.tensors._homes.clear()
        with world.by_itself(), pytest.raises(InvalidGraph, match="was released"):
            unit.current(unit.graph["q" if world.rank != 1 else "v"])
        unit._workspace.forms.locate()
        sent = world.sent
        unit._workspace.forms.bring("k")
        assert world.sent == sent
        unit._workspace.forms.bring("q" if world.rank == 2 else "")
        return here(unit)

    assert on_ranks(4, work) == ["kv", "qk", "qk", "ko"]


GLOO = """
import os, sys
from datetime import timedelta
import torch, torch.distributed as dist
from qdc.distributed.world import World
from qdc.ir.tensors import TensorTable

rank = next((r for r in (1, 2, 3) if os.fork() == 0), 0)
dist.init_process_group(
    "gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=4,
    timeout=timedelta(seconds=60),
)
world, table = World(rank, 4), TensorTable()
for source, to in ((0, [1, 2, 3]), (2, [0, 1]), (3, [0]), (1, [0, 2]), (1, [3])):
    given = torch.arange(5, dtype=torch.bfloat16).reshape(1, 5) * (source + 1)
    ref = table.put("x", given)
    found = world.deliver(ref, given if rank == source else None, source, to, "cpu")
    assert torch.equal(found, given) if rank in (source, *to) else not found.numel()
assert world.sent == 10 * (3, 2 + 1, 2, 1)[rank], (rank, world.sent)
assert len(world._groups) == 1, "those who read pass all of it in one group"
dist.barrier()
dist.destroy_process_group()
if rank == 0:
    assert [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(3)] == [0, 0, 0]
"""


def test_processes_deliver_to_some_of_them(tmp_path: object) -> None:
    done = python("-c", GLOO, f"{tmp_path}/store")
    assert done.returncode == 0, done.stderr
