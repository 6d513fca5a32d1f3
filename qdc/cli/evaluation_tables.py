"""The tables of ``qdc eval --text``."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from qdc.cli.sheets import Sheet, print_sheet, spread, text_lines
from qdc.cli.terminal import print_lines
from qdc.evaluation.results import Agreement, Comparison, DecodeAgreement, Evaluation

BOUND = "bound: on the negative log-likelihood a token, from masks of all ratios"
UNIGRAM = "unigram: what the frequencies of these windows' tokens alone would reach"
DIVERGENCE = "KL(original || compiled) of a masked token's distribution, in nats"


def print_evaluation(to: Console, found: Evaluation, *, markdown: bool = False) -> None:
    """Print how well one model predicts."""
    rows = [
        (f"{row.ratio:g}", f"{row.tokens:,}", f"{row.loss:.4f}", spread(row.interval, ".4f"))
        for row in found.ratios
    ]
    if found.bound is not None:
        rows.append(("bound", "", f"{found.bound:.4f}", spread(found.bound_interval, ".4f")))
    rows.append(("unigram", "", f"{found.unigram:.4f}", ""))
    columns = (_ratio(found), "tokens", "cross-entropy", "95% interval")
    sheet = Sheet(
        _title(found),
        columns,
        (1, 2, 3),
        rows,
        (
            *_bound(found),
            UNIGRAM,
            *_noise(found),
            *_blocks(found),
            _unit(found),
            *text_lines(found.text),
        ),
    )
    print_sheet(to, sheet, markdown=markdown)


def print_comparison(to: Console, found: Comparison, *, markdown: bool = False) -> None:
    """Print two models side by side, what the first one loses, and how far they agree."""
    candidate, original = found.candidate, found.original
    rows: list[tuple[str, ...]] = []
    for here, there, rise in zip(candidate.ratios, original.ratios, found.differences, strict=True):
        gap = original.unigram - there.loss
        rows.append(
            (
                f"{here.ratio:g}",
                f"{here.tokens:,}",
                f"{here.loss:.4f}",
                f"{there.loss:.4f}",
                f"{rise.rise:+.4f}",
                f"{rise.standard_error:.4f}",
                spread(rise.interval),
                f"{rise.rise / gap:.1%}" if gap > 0 else "n/a",
            )
        )
    if candidate.bound is not None:
        rows.append(
            (
                "bound", "", f"{candidate.bound:.4f}", f"{original.bound:.4f}",
                f"{found.bound_rise:+.4f}", f"{found.bound_standard_error:.4f}",
                spread(found.bound_interval), "",
            )
        )  # fmt: skip
    rows.append(("unigram", "", "", f"{original.unigram:.4f}", "", "", "", ""))
    columns = (
        _ratio(candidate), "tokens", "compiled", "original", "rise", "s.e.", "95% interval",
        "share of gap",
    )  # fmt: skip
    notes = (
        *_bound(candidate), UNIGRAM, "gap: from the original to unigram", *_how(candidate),
        _unit(candidate), *text_lines(candidate.text),
    )  # fmt: skip
    sheet = Sheet(_title(candidate), columns, (1, 2, 3, 4, 5, 6, 7), rows, notes)
    print_sheet(to, sheet, markdown=markdown)
    if found.agreements:
        print_lines(to, "")
        print_sheet(to, _agreements(found.agreements, candidate), markdown=markdown)
    if found.decoding is not None:
        print_lines(to, "", *_decoding(found.decoding))


def _ratio(found: Evaluation) -> str:
    """The name of the column of ratios."""
    return "mask ratio" if found.canvas is None else "noise ratio"


def _bound(found: Evaluation) -> tuple[str, ...]:
    """What the bound is, where there is one."""
    return () if found.bound is None else (BOUND,)


def _noise(found: Evaluation) -> tuple[str, ...]:
    """What a ratio means for a model that writes canvases from noise."""
    if found.canvas is None:
        return ()
    return (
        f"noise: that share of the last {min(found.canvas, found.length)} tokens of a window, its "
        "canvas, is random, and the loss is of the text's tokens there",
    )


def _how(found: Evaluation) -> tuple[str, ...]:
    """How a model of canvases, or one whose attention goes by blocks, has read the windows."""
    return (*_noise(found), *_blocks(found))


def _blocks(found: Evaluation) -> tuple[str, ...]:
    """How a model whose attention goes by blocks has read the windows."""
    if found.behind_clean is None:
        return ()
    return (
        f"blocks: each of {found.behind_clean} tokens is read behind the clean text before it; "
        "--hide all hides places of all blocks at once",
    )


def print_comparisons(
    to: Console,
    reference: Path,
    found: Sequence[tuple[Path, Comparison]],
    *,
    markdown: bool = False,
) -> None:
    """Print several models in one table, each against the same other one."""
    first = found[0][1]
    rows: list[tuple[str, ...]] = [
        (str(reference), f"{row.ratio:g}", f"{row.loss:.4f}", "", "", "", "", "")
        for row in first.original.ratios
    ]
    if first.original.bound is not None:
        rows.append((str(reference), "bound", f"{first.original.bound:.4f}", "", "", "", "", ""))
    for path, each in found:
        for row, rise, agreement in zip(
            each.candidate.ratios, each.differences, each.agreements, strict=True
        ):
            rows.append(
                (
                    str(path), f"{row.ratio:g}", f"{row.loss:.4f}", f"{rise.rise:+.4f}",
                    f"{rise.standard_error:.4f}", spread(rise.interval), f"{agreement.top1:.1%}",
                    f"{agreement.divergence:.4f}",
                )
            )  # fmt: skip
        if each.candidate.bound is None:
            continue
        rows.append(
            (
                str(path), "bound", f"{each.candidate.bound:.4f}", f"{each.bound_rise:+.4f}",
                f"{each.bound_standard_error:.4f}", spread(each.bound_interval), "", "",
            )
        )  # fmt: skip
    columns = (
        "model", _ratio(first.candidate),
        "loss", "rise", "s.e.", "95% interval", "same top token", "KL"
    )  # fmt: skip
    notes = (
        f"rise, same top token and KL: against {reference}",
        *_bound(first.candidate),
        *_noise(first.candidate),
        _unit(first.candidate),
        *text_lines(first.candidate.text),
    )
    sheet = Sheet(_title(first.candidate), columns, (1, 2, 3, 4, 5, 6, 7), rows, notes)
    print_sheet(to, sheet, markdown=markdown)
    filled = [(path, each.decoding) for path, each in found if each.decoding is not None]
    for path, decoding in filled:
        print_lines(to, "", str(path), *_decoding(decoding))


def _agreements(found: Sequence[Agreement], of: Evaluation) -> Sheet:
    rows: list[tuple[str, ...]] = [
        (
            f"{row.ratio:g}",
            f"{row.top1:.1%}",
            spread(row.top1_interval, ".1%"),
            f"{row.divergence:.4f}",
            spread(row.divergence_interval, ".4f"),
        )
        for row in found
    ]
    columns = (_ratio(of), "same top token", "95% interval", "KL", "95% interval")
    tokens = "masked tokens" if of.canvas is None else "tokens that were drawn anew"
    note = f"KL: {DIVERGENCE if of.canvas is None else DIVERGENCE.replace('masked', 'random')}"
    return Sheet(f"agreement on {tokens}", columns, (1, 2, 3, 4), rows, (note,))


def _decoding(found: DecodeAgreement) -> tuple[str, ...]:
    interval = f" ({spread(found.interval, '.1%')})" if found.interval else ""
    return (
        f"filled greedily by both: {found.gaps} gaps of {found.gap} tokens",
        f"equal: {found.tokens_equal:.1%} of the tokens{interval}, {found.gaps_equal} gaps",
        f"as in the text: {found.candidate_right:.1%} of the compiled model's tokens, "
        f"{found.original_right:.1%} of the original's",
    )


def _title(found: Evaluation) -> str:
    windows = "1 window" if found.windows == 1 else f"{found.windows} windows"
    return f"nats a token   {windows} of {found.length} tokens from {found.documents} documents"


def _unit(found: Evaluation) -> str:
    return f"errors and intervals: {found.resampled} resampled whole"
