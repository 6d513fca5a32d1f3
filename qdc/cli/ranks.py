"""What the command line does when torchrun has started several of it.

Nothing here imports torch, unless the command has done so already.
"""

import os
import sys

from qdc.errors import QdcError


def several() -> bool:
    """Whether this is one of several processes."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def refuse_ranks(command: str) -> None:
    """Refuse a command that one process does alone. Raises ``QdcError``."""
    if several():
        raise QdcError(
            f"qdc {command} is the work of one process, and torchrun has started several",
            help="start it without torchrun; qdc compile takes several",
        )


def shows_errors() -> bool:
    """Whether an error of this process is to be shown.

    Once the processes have met, whoever is not to show an error no longer has it. What goes wrong
    before that goes wrong in all of them.
    """
    return is_first() or _met()


def is_first() -> bool:
    """Whether this process is the one that speaks for all of them."""
    return not several() or os.environ.get("RANK", "0") == "0"


def leave() -> None:
    """Wait until all processes have shown what they have to, and part."""
    if several() and _met():
        from qdc.distributed.launch import leave

        leave()


def _met() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and bool(distributed.is_initialized())
