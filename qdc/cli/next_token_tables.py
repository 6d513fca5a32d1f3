"""The tables of ``qdc eval --text`` for causal models, which have a next-token loss."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from qdc.cli.sheets import Sheet, print_sheet, spread, text_lines
from qdc.evaluation.results import NextToken, NextTokenComparison

NEXT = "next-token loss: cross-entropy of a token given all before it; the model has no mask token"
UNIGRAM = "unigram: what the frequencies of these windows' tokens alone would reach"


def print_next(to: Console, found: NextToken, *, markdown: bool = False) -> None:
    """Print how well one causal model predicts."""
    rows = [
        (
            "next-token loss",
            f"{found.tokens:,}",
            f"{found.next_token_loss:.4f}",
            spread(found.interval, ".4f"),
        ),
        ("unigram", "", f"{found.unigram:.4f}", ""),
    ]
    columns = ("", "tokens", "cross-entropy", "95% interval")
    sheet = Sheet(
        _title(found),
        columns,
        (1, 2, 3),
        rows,
        (NEXT, UNIGRAM, _unit(found), *text_lines(found.text)),
    )
    print_sheet(to, sheet, markdown=markdown)


def print_next_comparisons(
    to: Console,
    reference: Path,
    found: Sequence[tuple[Path, NextTokenComparison]],
    *,
    markdown: bool = False,
) -> None:
    """Print one or several causal models in one table, each against the same other one."""
    first = found[0][1]
    rows = [(str(reference), f"{first.original.next_token_loss:.4f}", "", "", "", "", "")]
    rows += [
        (
            str(path), f"{each.candidate.next_token_loss:.4f}", f"{each.rise:+.4f}",
            f"{each.standard_error:.4f}", spread(each.interval), f"{each.top1:.1%}",
            f"{each.divergence:.4f}",
        )
        for path, each in found
    ]  # fmt: skip
    rows.append(("unigram", f"{first.original.unigram:.4f}", "", "", "", "", ""))
    columns = (
        "model", "next-token loss", "rise", "s.e.", "95% interval", "same top token", "KL"
    )  # fmt: skip
    notes = (
        f"rise, same top token and KL: against {reference}",
        NEXT,
        UNIGRAM,
        _unit(first.candidate),
        *text_lines(first.candidate.text),
    )
    sheet = Sheet(_title(first.candidate), columns, (1, 2, 3, 4, 5, 6), rows, notes)
    print_sheet(to, sheet, markdown=markdown)


def _title(found: NextToken) -> str:
    windows = "1 window" if found.windows == 1 else f"{found.windows} windows"
    return f"nats a token   {windows} of {found.length} tokens from {found.documents} documents"


def _unit(found: NextToken) -> str:
    return f"errors and intervals: {found.resampled} resampled whole"
