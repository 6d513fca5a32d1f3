"""A comparison from beginning to end: what ``qdc.compare`` and ``qdc compare`` do."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime

import torch

from qdc.comparing.folder import RESULTS, open_folder, write_outcome
from qdc.comparing.jobs import Setup, asked, rows, setup_of
from qdc.comparing.judge import read_held_out
from qdc.comparing.measure import middle
from qdc.comparing.options import CompareOptions
from qdc.comparing.runner import Job, Listener, Outcome, finished, pending, run_all
from qdc.comparing.summary import loss_rows, method_rows, variations
from qdc.comparing.table import CompareResult
from qdc.errors import QdcError
from qdc.pipeline.registry import standard_registry
from qdc.text.records import Fields
from qdc.text.source import read_source
from qdc.units import StepProgress
from qdc.version import __version__

Shown = Callable[[int, int], AbstractContextManager[Listener]]
"""Shows so many jobs, so many at a time."""


def compare_methods(
    options: CompareOptions, shown: Shown | None = None, progress: StepProgress | None = None
) -> CompareResult:
    """Compile and judge every method, or go on where an earlier call ended.

    Args:
        options: what to compare, and how.
        shown: shows the jobs while they run.
        progress: called with what is done, how much of it, and the total.

    Raises:
        QdcError: what is asked for cannot be meant, or the model, the texts or the folder are at
            fault. What just one method fails of is in its row.
    """
    registry = standard_registry(options.plugins)
    axes, found = asked(options, registry)
    setup = setup_of(options, registry, options.out / RESULTS)
    assert setup.judging is not None
    masked = setup.graph.model.mask_token_id is not None
    if not masked:
        _refuse_masks(options)
    held_out, source = read_held_out(
        options.model_dir, setup.graph.model, setup.judging, options.document_tokens,
        registry.families,
    )  # fmt: skip
    table = list(rows(found, options.seeds, setup))
    open_folder(options.out)
    jobs = [job for row in table for job in row.jobs]
    outcome = _run(options, jobs, setup, shown, progress)
    results = finished(setup.out, jobs)
    ratio = middle(setup.judging.ratios) if masked else None
    text = read_source(
        setup.calibrating.text, Fields.parse(options.text_field, options.chat_fields)
    )
    first = next(iter(results.values()), None)
    compared = CompareResult(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        qdc=__version__,
        tag=options.tag,
        model=str(options.model_dir),
        model_sha256=setup.model_digest,
        held_out=f"{source.name} sha256:{source.digest}",
        held_out_left_out=source.left_out,
        held_out_text=held_out.use,
        calibration=f"{text.name} sha256:{text.digest}",
        seeds=options.seeds,
        masks=options.masks,
        device=setup.device,
        ratio=ratio,
        original=() if first is None else loss_rows(first),
        rows=method_rows(table, results, outcome.failed, ratio),
        variations=tuple(variations(table, axes, results)),
    )
    write_outcome(compared, options.out)
    return compared


def _refuse_masks(options: CompareOptions) -> None:
    """Refuse options of masked losses for a model without mask token."""
    given = [f"--{name}" for name in ("ratios", "masks") if name in options.model_fields_set]
    if given:
        raise QdcError(
            f"{', '.join(given)} is about masked tokens, and the model has no mask token",
            help="leave it out: methods are judged by their next-token loss",
        )


def _run(
    options: CompareOptions,
    jobs: list[Job],
    setup: Setup,
    shown: Shown | None,
    progress: StepProgress | None,
) -> Outcome:
    """Run what is not there yet. A signal says what is kept."""
    todo = pending(setup.out, jobs)
    if options.keep_artifacts:
        there = {job.path for job in todo}
        todo += [job for job in jobs if job.path not in there and _lacks_artifact(job)]
    if not todo:
        return Outcome()
    threads = options.threads or max(1, torch.get_num_threads() // options.jobs)
    listener = nullcontext(_Counting(progress, len(todo)))
    try:
        with listener if shown is None else shown(len(todo), options.jobs) as told:
            outcome = run_all(todo, setup.out, options.jobs, threads, told)
    except BaseException as error:
        kept = len(jobs) - len(pending(setup.out, jobs))
        error.add_note(
            f"{kept} of {len(jobs)} results are kept in {options.out}: the same command goes on"
        )
        raise
    outcome.failed |= _twins(jobs, todo, outcome)
    return outcome


def _twins(jobs: list[Job], todo: list[Job], outcome: Outcome) -> dict[str, str]:
    """Errors of jobs whose work was done under another name."""
    errors = {
        job.work.digest: outcome.failed[job.path]
        for job in todo
        if job.work is not None and job.path in outcome.failed
    }
    return {
        job.path: errors[job.work.digest]
        for job in jobs
        if job.work is not None and job.work.digest in errors
    }


def _lacks_artifact(job: Job) -> bool:
    return job.work is not None and job.work.keep is not None and not job.work.keep.is_dir()


class _Counting(Listener):
    """Tells a caller in Python how many jobs have ended."""

    def __init__(self, progress: StepProgress | None, total: int) -> None:
        self.progress, self.total, self.ended = progress, total, 0

    def done(self, job: Job, result: object) -> None:
        self._end(job)

    def failed(self, job: Job, error: str) -> None:
        self._end(job)

    def _end(self, job: Job) -> None:
        self.ended += 1
        if self.progress is not None:
            self.progress(job.path, self.ended, self.total)
