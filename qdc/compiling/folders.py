"""The folders of a process while it compiles: what can be gone on from, and what waits."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgpack

from qdc.artifact.lockedfolder import LockedFolder
from qdc.artifact.partial import Partial
from qdc.artifact.rankfolder import Noted, RankFolder
from qdc.compiling.job import Job
from qdc.distributed.world import World


@contextmanager
def own_folder(job: Job, world: World) -> Iterator[LockedFolder | None]:
    """The folder of this process, in the first the one of the artifact; None if none is made."""
    if job.backend is None:
        yield None
        return
    resume, restart = job.options.resume, job.options.restart
    if world.size == 1:
        with Partial(job.out, resume=resume, restart=restart) as partial:
            yield partial
        return
    if world.first:
        with Partial(job.out, resume=resume, restart=restart) as partial:
            journal = partial.journal
            known = None if journal is None or not journal.run else journal
            noted = None if known is None else [known.run, len(known.entries)]
            world.agree(msgpack.packb(noted))
            yield partial
        return
    (answer, *_) = world.agree()
    found = msgpack.unpackb(answer)
    with RankFolder(job.out, world.rank, None if found is None else Noted(*found)) as own:
        yield own


@contextmanager
def scratch_folder(job: Job, own: LockedFolder | None) -> Iterator[Path]:
    """Yield a folder for what waits: beside what will be written, where there is room."""
    if own is not None:
        yield own.scratch
        return
    beside = job.dump_folder.absolute().parent
    with tempfile.TemporaryDirectory(
        prefix=".qdc-", dir=beside if beside.is_dir() else None
    ) as folder:
        yield Path(folder)
