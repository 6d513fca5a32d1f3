"""``qdc eval --text``: masked cross-entropy on held-out text."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from qdc.cli.evaluation_tables import print_comparison, print_comparisons, print_evaluation
from qdc.cli.models import Opened, open_runnable
from qdc.cli.report import report_of
from qdc.cli.terminal import console, print_json, progress
from qdc.errors import QdcError
from qdc.evaluation.evaluate import Comparison, Evaluation, compare, evaluate, held_out
from qdc.report.files import write_report
from qdc.report.model import CompileReport, EvaluationReport
from qdc.text.source import TextSource, read_text

PROBE = "def f(x):\n    return x + 1\n"


class Measurement(NamedTuple):
    """What is measured, and on how much."""

    ratios: tuple[float, ...]
    length: int | None
    windows: int
    seeds: int
    batch: int
    infills: int


def evaluate_command(
    *,
    models: Sequence[Path],
    text: Path,
    against: Path | None,
    ratios: str,
    length: int | None,
    windows: int,
    seeds: int,
    batch: int,
    infills: int,
    text_field: str,
    device: str,
    backend: str,
    add_to_report: bool,
    plugins: Sequence[Path],
    as_json: bool,
    as_markdown: bool = False,
) -> None:
    """Load models, measure on the same masks, print."""
    measurement = Measurement(parse_ratios(ratios), length, windows, seeds, batch, infills)
    if len(models) > 1 and add_to_report:
        raise QdcError(
            f"--report adds the figures of one artifact, and {len(models)} are given",
            help="evaluate them one by one",
        )
    report = report_of(models[0]) if add_to_report else None
    reference, candidates = split(models, against)
    _check_counts(measurement, reference is not None)
    source = read_text(text, text_field)
    results = list(_results(candidates, reference, source, measurement, device, backend, plugins))
    if len(candidates) > 1:
        assert reference is not None
        found = [
            (path, result)
            for path, result in zip(candidates, results, strict=True)
            if isinstance(result, Comparison)
        ]
        if as_json:
            rows = [{"model": str(p), "result": r.model_dump(mode="json")} for p, r in found]
            print_json({"against": str(reference), "models": rows})
        else:
            print_comparisons(console(), reference, found, markdown=as_markdown)
        return
    [result] = results
    if as_json:
        print_json(result.model_dump(mode="json"))
    elif isinstance(result, Comparison):
        print_comparison(console(), result, markdown=as_markdown)
    else:
        print_evaluation(console(), result, markdown=as_markdown)
    if report is not None:
        _add(report, models[0], source, seeds, against, result)


def split(models: Sequence[Path], against: Path | None) -> tuple[Path | None, Sequence[Path]]:
    """The model that the others are compared with, and the others.

    Of several models it is the first one, unless ``against`` names it.
    """
    if against is not None:
        return against, models
    return (models[0], models[1:]) if len(models) > 1 else (None, models)


def check_alike(candidate: Opened, original: Opened) -> None:
    """Raise ``QdcError`` unless both read and predict the same tokens."""
    if candidate.facts != original.facts or candidate.encode(PROBE) != original.encode(PROBE):
        raise QdcError(
            "the two models do not share vocabulary, mask token and tokenizer",
            help="compare an artifact with the checkpoint that it was compiled from",
        )


def _results(
    candidates: Sequence[Path],
    reference: Path | None,
    source: TextSource,
    wanted: Measurement,
    device: str,
    backend: str,
    plugins: Sequence[Path],
) -> Iterator[Evaluation | Comparison]:
    """Measure one candidate after the other: two models at most are in memory."""
    original = None
    for path in candidates:
        candidate = open_runnable(path, device, plugins, backend)
        if reference is not None:
            original = original or open_runnable(reference, device, plugins)
            check_alike(candidate, original)
        yield _measure(candidate, original, source, wanted, path.name)
        del candidate


def _measure(
    candidate: Opened,
    original: Opened | None,
    source: TextSource,
    wanted: Measurement,
    name: str,
) -> Evaluation | Comparison:
    facts = candidate.facts
    size = facts.max_length if wanted.length is None else wanted.length
    if size > facts.max_length:
        raise QdcError(
            f"--length {size} is beyond the model's {facts.max_length} tokens",
            help="choose a smaller length",
        )
    windows, owners = held_out(source.documents, candidate.encode, size, wanted.windows)
    documents, drawn = len(source.documents), range(wanted.seeds)
    with progress() as update:

        def tick(done: int, total: int) -> None:
            update(f"evaluate {name}"[:22], done, total)

        if original is None:
            return evaluate(
                candidate, windows, facts.mask_token_id, wanted.ratios, drawn, wanted.batch,
                progress=tick, documents=documents, owners=owners,
            )  # fmt: skip
        return compare(
            candidate, original, windows, facts.mask_token_id, wanted.ratios, drawn, wanted.batch,
            progress=tick, documents=documents, owners=owners,
            infills=_infills(windows, wanted.infills), block=facts.attention_block,
            decoded=lambda done, total: update("fill gaps", done, total),
        )  # fmt: skip


def _infills(windows: Tensor, wanted: int) -> int:
    """How many gaps to fill; windows of one token have no place for one."""
    return 0 if windows.shape[1] < 2 else min(wanted, len(windows))


def _add(
    report: CompileReport,
    model: Path,
    source: TextSource,
    seeds: int,
    against: Path | None,
    result: Evaluation | Comparison,
) -> None:
    found = EvaluationReport(
        text=f"{source.name} sha256:{source.digest}",
        seeds=seeds,
        against=None if against is None else str(against.absolute()),
        result=result,
    )
    if report_of(model).artifact_sha256 != report.artifact_sha256:
        raise QdcError(
            "the artifact was replaced while it was evaluated; its report is left as it is",
            where=[str(model)],
            help="evaluate again",
        )
    write_report(report.model_copy(update={"evaluation": found}), model)


def _check_counts(wanted: Measurement, compared: bool) -> None:
    if wanted.seeds < 1:
        raise QdcError(f"--seeds {wanted.seeds} draws no mask", help="--seeds 1 or more")
    if wanted.windows < 1:
        raise QdcError(f"--windows {wanted.windows} leaves no text", help="--windows 1 or more")
    if wanted.batch < 1:
        raise QdcError(f"--batch {wanted.batch} runs nothing", help="--batch 1 or more")
    if wanted.infills < 0:
        raise QdcError(f"--infills {wanted.infills} is no count", help="--infills 0 or more")
    if compared and wanted.windows < 2:
        raise QdcError(
            f"--windows {wanted.windows} gives no standard error of the difference",
            help="--windows 2 or more",
        )


def parse_ratios(text: str) -> tuple[float, ...]:
    """Mask ratios from ``0.15,0.5``. Raises ``QdcError``."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise QdcError(
            f"--ratios {text!r} is no list of numbers", help="--ratios 0.15,0.5"
        ) from error
    if not all(0 < ratio <= 1 for ratio in found):
        raise QdcError(f"--ratios {text!r} leaves 0..1", help="--ratios 0.15,0.5,0.85")
    return found
