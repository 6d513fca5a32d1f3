"""What the command line does when torchrun has started several of it.

Nothing here imports torch, unless the command has done so already.
"""

import os
import signal
import sys
import threading
import time

from qdc.errors import QdcError

LOOK, PATIENCE = 0.5, 10.0
"""Seconds between two looks for torchrun, and those that a process has to end once it is gone."""


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


def watch_parent() -> None:
    """End this process soon after torchrun, whoever has killed it: nobody would notice its work.

    A thread looks, as the main one may wait for other processes for hours. Where that one does not
    end at a signal, the thread ends the process.
    """
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print("torchrun has ended, and the compile with it", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os._exit(128 + signal.SIGTERM)
