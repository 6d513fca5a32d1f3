"""Write one model's part of docs/quality.md, and its plot, from the results."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.common.files import write
from bench.common.markdown import replace_part
from bench.quality.tables import checklist
from qdc.comparing.jobs import Setup
from qdc.comparing.judge import read_held_out
from qdc.comparing.result import Result
from qdc.comparing.statistics import MIDDLE, Ratio
from qdc.errors import QdcError

from . import drawing, tables
from .cases import LIBRARY, OURS
from .jobs import Job, Settings
from .judgement import Point, point_of, verdicts
from .promises import targets

PARTS = {
    False: ("bench.curve: masked", "curve-masked.svg"),
    True: ("bench.curve: causal", "curve-causal.svg"),
}
"""Of the page, with the plot of each, by whether the model is causal."""
CAPTION = "Loss against effective bits: our curve and the points of libraries"
LIBRARIES = {
    "autoround": "AutoRound", "gptq": "GPTQ (llm-compressor)", "hqq": "HQQ",
    "llamacpp": "llama.cpp",
}  # fmt: skip


def write_page(
    jobs: Sequence[Job],
    results: Mapping[str, Result],
    docs: Path,
    settings: Settings,
    shared: Setup,
) -> None:
    """Replace the part of the model's kind, and write the plot beside the page.

    Raises:
        ValueError: the page lacks the marks of the part.
        QdcError: none of our points has been run.
    """
    ours, theirs = (_found(jobs, results, family) for family in (OURS, LIBRARY))
    if not ours:
        raise QdcError("there are no results of our own points", help="run them: --only '^ours/'")
    causal = shared.graph.model.mask_token_id is None
    ratio: Ratio = None if causal else MIDDLE
    part, drawn = PARTS[causal]
    judged = verdicts(ours, theirs, ratio)
    seeds = sorted({r.seed for r in results.values() if r.seed is not None})
    missing = {job.case.name: job.missing for job in jobs if job.work is None}
    left: dict[str, list[int | None]] = {}
    for job in jobs:
        if job.work is not None and job.path not in results:
            left.setdefault(job.case.name, []).append(job.seed)
    names = ", ".join(map(str, seeds))
    said = _held_out(settings, shared)
    blocks = (
        f"![{CAPTION}](quality/{drawn})",
        tables.setting(results, settings.model.name, names, said, ratio),
        tables.summary(judged),
        checklist(targets(ours, theirs, ratio)),
        tables.verdict_table(judged),
        "All points:",
        tables.points_table(ours, theirs, ratio),
        tables.not_run(missing, left),
    )
    page = docs / "quality.md"
    text = "\n\n".join(filter(None, blocks))
    changed = replace_part(page.read_text(encoding="utf-8"), part, text)
    what = "rise of the next-token loss" if causal else "rise of the masked loss at ratio 0.5"
    points = [point_of(name, each, ratio) for name, each in ours.items()]
    plot = drawing.curve(points, _by_library(jobs, theirs, ratio), f"{what}, nats a token")
    write(plot, docs / "quality" / drawn)
    write(changed, page)


def _found(
    jobs: Sequence[Job], results: Mapping[str, Result], family: str
) -> dict[str, list[Result]]:
    """Results over seeds, by the name of their case."""
    found: dict[str, list[Result]] = {}
    for job in jobs:
        if job.case.family == family and job.path in results:
            found.setdefault(job.case.name, []).append(results[job.path])
    return found


def _by_library(
    jobs: Sequence[Job], theirs: Mapping[str, Sequence[Result]], ratio: Ratio
) -> dict[str, list[Point]]:
    peers = {job.case.name: job.case.peer for job in jobs}
    found: dict[str, list[Point]] = {}
    for name, results in theirs.items():
        library = LIBRARIES[peers[name]]
        found.setdefault(library, []).append(point_of(name, results, ratio))
    return found


def _held_out(settings: Settings, shared: Setup) -> str:
    """The windows in words."""
    assert shared.judging is not None
    text, _ = read_held_out(
        settings.model,
        shared.graph.model,
        shared.judging,
        shared.document_tokens,
        shared.registry.families,
    )
    return "; ".join(text.use.said)
