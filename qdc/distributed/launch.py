"""Joining the processes that torchrun has started.

torchrun tells each of its processes by environment variables who it is; without them, or with one
process, there is no group and nothing to join.
"""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from qdc.distributed.failure import FailedElsewhere, status_of
from qdc.distributed.world import World
from qdc.errors import QdcError
from qdc.stopping import is_stop

PATIENCE = timedelta(hours=2)
"""How long ranks wait for each other: longer than one layer takes to be lowered."""
NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def world_size() -> int:
    """Processes that were started together. Raises ``QdcError`` if that is no number."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise QdcError(f"WORLD_SIZE is {text!r}, not a number of processes", help="use torchrun")
    return int(text)


@contextlib.contextmanager
def joined(device: str, *, ordered: bool = False) -> Iterator[World]:
    """Join the group and yield the world; an error on one rank ends all, and one shows it.

    Args:
        device: ``cpu``, or ``cuda``: each process of a machine then takes a GPU of its own.
        ordered: whether sums are those of a single process, bit for bit.

    Raises:
        FailedElsewhere: in place of an error that another rank shows.
        QdcError: the environment is not that of torchrun, or a device is missing.
    """
    size = world_size()
    if size == 1:
        yield World(device=device, ordered=ordered)
        return
    own = _own_device(device)
    if not dist.is_initialized():
        _initialize(own)
    world = World(dist.get_rank(), size, own, ordered=ordered)
    try:
        yield world
    except BaseException as error:  # as of a plugin that calls sys.exit
        if is_stop(error) or world.speaks(error) or isinstance(error, FailedElsewhere):
            raise
        raise FailedElsewhere(world.speaker, status_of(error)) from error


def leave() -> None:
    """Wait until every rank has come here, its error shown, and leave the group."""
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            dist.all_reduce(torch.zeros(1))
        dist.destroy_process_group()


def _own_device(device: str) -> str:
    """``cuda`` becomes the GPU of this process."""
    if torch.device(device).type != "cuda":
        return device
    if torch.device(device).index is not None:
        raise QdcError(
            f"{device} is one device, and torchrun has started several processes",
            help="use --device cuda: each process takes its own",
        )
    index, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if index >= count:
        raise QdcError(
            f"process {index} of this machine has no GPU: there are {count}",
            help="start at most that many: --nproc-per-node",
        )
    torch.cuda.set_device(index)
    return f"cuda:{index}"


def _initialize(device: str) -> None:
    lacking = [name for name in NEEDED if name not in os.environ]
    if lacking:
        raise QdcError(
            "WORLD_SIZE is set, and the rest of torchrun's environment is not",
            where=lacking,
            help="start qdc by torchrun, or unset WORLD_SIZE",
        )
    # Messages are on the CPU in any case.
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    try:
        dist.init_process_group(backend, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise QdcError(
            f"the processes cannot join: {str(error).splitlines()[0].lower()}",
            help="look at the addresses that torchrun was given",
        ) from error
