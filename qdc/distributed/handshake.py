"""What processes make sure of before they share work, and what they tell each other at the end."""

import hashlib
from collections.abc import Callable, Mapping

import msgpack
import torch

from qdc.distributed.world import World
from qdc.errors import QdcError


def same(world: World, facts: Mapping[str, str]) -> None:
    """Refuse processes that would not do the same work.

    Args:
        world: the ranks.
        facts: by name, what must be equal everywhere.

    Raises:
        QdcError: names what differs, and the ranks that differ from the first.
    """
    # Every rank knows the same names, whatever its options are: all must see what differs.
    known = {
        **facts,
        "torch": torch.__version__,
        "--deterministic-reduce": str(world.ordered),
        "number of threads": str(torch.get_num_threads()) if world.ordered else "",
    }
    mine = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in known.items()}
    found = [msgpack.unpackb(answer) for answer in world.agree(msgpack.packb(mine))]
    odd = [
        name for name in known if any(answer.get(name) != found[0].get(name) for answer in found)
    ]
    if odd:
        ranks = [rank for rank, answer in enumerate(found) if answer != found[0]]
        raise QdcError(
            f"the processes of the compile do not agree on: {', '.join(odd)}",
            where=[f"rank {rank}" for rank in ranks],
            help="start all of them with the same command, files and versions",
        )


def total(world: World, *numbers: float) -> list[float]:
    """Sums over all ranks."""
    answers = [msgpack.unpackb(answer) for answer in world.agree(msgpack.packb(numbers))]
    return [sum(column) for column in zip(*answers, strict=True)]


def from_first(world: World, make: Callable[[], str]) -> str:
    """What the first rank alone makes, on all ranks."""
    return world.agree(make().encode() if world.first else b"")[0].decode()
