"""``qdc eval``: masked cross-entropy on held-out text."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from qdc.calibration.text import read_text
from qdc.cli.models import Opened, open_runnable
from qdc.cli.report import report_of
from qdc.cli.terminal import console, print_json, print_lines, print_table, progress, table
from qdc.errors import QdcError
from qdc.report.files import write_report
from qdc.report.model import EvaluationReport
from qdc.runtime.evaluate import Comparison, Evaluation, compare, evaluate, held_out_windows

BOUND = "bound: on the negative log-likelihood a token, from masks of all ratios"


def evaluate_command(
    *,
    model: Path,
    text: Path,
    against: Path | None,
    ratios: str,
    length: int | None,
    windows: int,
    seeds: int,
    text_field: str,
    device: str,
    add_to_report: bool,
    plugins: Sequence[Path],
    as_json: bool,
) -> None:
    """Load one or two models, measure on the same masks, print."""
    wanted = parse_ratios(ratios)
    report = report_of(model) if add_to_report else None
    _check_counts(seeds, windows, against is not None)
    source = read_text(text, text_field)
    candidate = open_runnable(model, device, plugins)
    original = None if against is None else open_runnable(against, device, plugins)
    if original is not None:
        _check_alike(candidate, original)
    size = candidate.facts.max_length if length is None else length
    if size > candidate.facts.max_length:
        raise QdcError(
            f"--length {size} is beyond the model's {candidate.facts.max_length} tokens",
            help="choose a smaller length",
        )
    cut = held_out_windows(source.documents, candidate.encode, size, windows)
    mask, drawn, documents = candidate.facts.mask_token_id, range(seeds), len(source.documents)
    result: Evaluation | Comparison
    with progress() as update:

        def tick(done: int, total: int) -> None:
            update("evaluate", done, total)

        if original is None:
            result = evaluate(
                candidate, cut, mask, wanted, drawn, progress=tick, documents=documents
            )
        else:
            result = compare(
                candidate, original, cut, mask, wanted, drawn,
                progress=tick, documents=documents,
            )  # fmt: skip
    if as_json:
        print_json(result.model_dump(mode="json"))
    elif isinstance(result, Comparison):
        print_comparison(console(), result)
    else:
        print_evaluation(console(), result)
    if report is not None:
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


def print_evaluation(to: Console, found: Evaluation) -> None:
    """Print how well one model predicts."""
    rows = table(_title(found), "mask ratio", "tokens", "cross-entropy", right=(1, 2))
    for row in found.ratios:
        rows.add_row(f"{row.ratio:g}", f"{row.tokens:,}", f"{row.loss:.4f}")
    rows.add_row("bound", "", f"{found.bound:.4f}")
    rows.add_row("unigram of these windows", "", f"{found.unigram:.4f}")
    print_table(to, rows)
    print_lines(to, "", BOUND)


def print_comparison(to: Console, found: Comparison) -> None:
    """Print two models side by side, and what the first one loses."""
    candidate, original = found.candidate, found.original
    rows = table(
        _title(candidate), "mask ratio", "tokens", "compiled", "original", "rise", "s.e.",
        "share of the gap to unigram", right=(1, 2, 3, 4, 5, 6),
    )  # fmt: skip
    for here, there, rise in zip(candidate.ratios, original.ratios, found.differences, strict=True):
        gap = original.unigram - there.loss
        rows.add_row(
            f"{here.ratio:g}",
            f"{here.tokens:,}",
            f"{here.loss:.4f}",
            f"{there.loss:.4f}",
            f"{rise.rise:+.4f}",
            f"{rise.standard_error:.4f}",
            f"{rise.rise / gap:.1%}" if gap > 0 else "n/a",
        )
    rows.add_row(
        "bound", "", f"{candidate.bound:.4f}", f"{original.bound:.4f}",
        f"{found.bound_rise:+.4f}", f"{found.bound_standard_error:.4f}", "",
    )  # fmt: skip
    rows.add_row("unigram of these windows", "", "", f"{original.unigram:.4f}", "", "", "")
    print_table(to, rows)
    print_lines(to, "", BOUND)


def _title(found: Evaluation) -> str:
    windows = "1 window" if found.windows == 1 else f"{found.windows} windows"
    return f"nats a token   {windows} of {found.length} tokens from {found.documents} documents"


def _check_counts(seeds: int, windows: int, compared: bool) -> None:
    if seeds < 1:
        raise QdcError(f"--seeds {seeds} draws no mask", help="--seeds 1 or more")
    if windows < 1:
        raise QdcError(f"--windows {windows} leaves no text", help="--windows 1 or more")
    if compared and windows < 2:
        raise QdcError(
            f"--windows {windows} gives no standard error of the difference from --against",
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


def _check_alike(candidate: Opened, original: Opened) -> None:
    probe = "def f(x):\n    return x + 1\n"
    if candidate.facts != original.facts or candidate.encode(probe) != original.encode(probe):
        raise QdcError(
            "the two models do not share vocabulary, mask token and tokenizer",
            help="compare an artifact with the checkpoint that it was compiled from",
        )
