"""What the processes of one compile agree on, at its beginning, and in the report at its end."""

import secrets
from collections.abc import Callable

import torch

from qdc.artifact.lockedfolder import LockedFolder
from qdc.checkpoint.folder import Checkpoint
from qdc.compiling.collect import full_text
from qdc.compiling.job import Job
from qdc.compiling.origin import identity
from qdc.distributed.handshake import from_first, total
from qdc.distributed.world import World
from qdc.report.model import CompileReport
from qdc.runtime.device import own_memory
from qdc.streaming.calibration import Calibration
from qdc.streaming.workspace import Workspace
from qdc.version import __version__

Shared = dict[str, int]
"""What the report says of the processes."""


def agreed(job: Job, checkpoint: Checkpoint, calibration: Calibration | None) -> dict[str, str]:
    """What every process of a compile must have the same of."""
    return {
        "qdc": __version__,
        "checkpoint": repr((checkpoint.config, sorted(checkpoint.headers.items()))),
        "calibration text": "" if calibration is None else calibration.source.digest,
        "pipeline": full_text(job.plan),
        "front end": job.frontend(checkpoint),
        "backend": str(job.backend),
        "plugins": repr(job.registry.plugins),
        "states": job.options.states,
        "special tokens": job.options.document_tokens,
        "tokenizer": ""
        if calibration is None
        else repr(list(checkpoint.tokenizer_digests().items())),
    }


def made_from(
    job: Job, calibration: Calibration | None, digest: str, checkpoint: Checkpoint, world: World
) -> dict[str, str]:
    """What a compile that goes on must have the same of; of several processes their number too."""
    found = identity(job, calibration, digest, checkpoint)
    if world.size > 1:
        found |= {"processes": str(world.size), "deterministic-reduce": str(world.ordered)}
    return found


def run_of(folder: LockedFolder, world: World) -> str:
    """What the journals of all processes have in common; nothing where there is one process."""
    if world.size == 1:
        return ""
    mine = secrets.token_hex(16) if folder.journal is None else folder.journal.run
    return from_first(world, lambda: mine)


def statistics_memory(job: Job, world: World) -> int:
    """Bytes that the statistics of a wave may take: what the process with the least has."""
    mine = job.options.statistics_limit(own_memory(torch.device(job.device)))
    return min(int(answer) for answer in world.agree(str(mine).encode()))


def complete_report(world: World, look: Callable[[], CompileReport | None]) -> CompileReport | None:
    """The report of the artifact that is there already, if the first process finds it, in all."""

    def text() -> str:
        found = look()
        return "" if found is None else found.model_dump_json()

    answer = from_first(world, text)
    return CompileReport.model_validate_json(answer) if answer else None


def shared_report(
    world: World, workspace: Workspace, make: Callable[[Shared], CompileReport]
) -> CompileReport:
    """The report that the first process makes, in all of them."""
    calls, sent = total(world, workspace.linear_calls, world.sent)
    workspace.linear_calls = calls
    shared: Shared = {"processes": world.size, "sent_bytes": int(sent)}
    text = from_first(world, lambda: make(shared).model_dump_json())
    return CompileReport.model_validate_json(text)
