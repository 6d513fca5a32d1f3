"""The generated part of the page for one model, as Markdown."""

import math
from collections.abc import Mapping, Sequence

from bench.common.markdown import table
from qdc.comparing.result import Result
from qdc.comparing.statistics import Ratio, Spread, agreement, gap, loss, window_error

from .judgement import HIGH, LOW, Found, Verdict, point_of

WORDS = "masked tokens, ratio 0.5", "next token"


def setting(results: Mapping[str, Result], model: str, seeds: str, said: str, ratio: Ratio) -> str:
    """When, on what and by which versions."""
    runs = list(results.values())
    days = sorted(result.created[:10] for result in runs)
    versions = sorted({result.version for result in runs})
    first = runs[0]
    due = next(part for part in first.original if part.ratio == ratio)
    original = loss(due, first.owners).mean
    between = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    torch = ", ".join(sorted({result.environment["torch"] for result in runs}))
    what = WORDS[ratio is None]
    return (
        f"{model}, {between}, {', '.join(versions)}, torch {torch}; calibration seeds {seeds}; "
        f"{said}; loss of the original {original:.3f} nats a token ({what})."
    )


def points_table(ours: Found, theirs: Found, ratio: Ratio) -> str:
    """Every point: bits, gap, error over the text, agreement with the original, cost."""
    rows = []
    for family, found in (("ours", ours), ("library", theirs)):
        for name, results in found.items():
            point, shares = point_of(name, results, ratio), agreement(results)
            divergence = "" if shares is None else f"{shares[1].mean:.4f}"
            cost = sum(r.cost.processor_seconds for r in results) / len(results)
            row = (
                f"`{name}`" if family == "ours" else name,
                family,
                f"{point.bits:.3f}",
                plus_minus(gap(results, ratio)),
                str(len(results)),
                f"{window_error(results, ratio):.4f}",
                divergence,
                f"{cost:.0f}",
                _types(results),
            )
            rows.append((point.bits, point.gap, row))
    head = (
        "method", "", "effective bits", "gap", "runs", "s.e.", "KL", "processor s", "note",
    )  # fmt: skip
    return table(head, (row for *_, row in sorted(rows)), left=2)


def verdict_table(found: Sequence[Verdict]) -> str:
    """Each point of others beside our curve at its bits; nothing if there is none."""
    if not found:
        return ""
    rows = []
    for verdict in found:
        ours, apart = verdict.ours, verdict.apart
        between = "" if ours is None else " and ".join(f"`{name}`" for name in ours.between)
        rows.append(
            (
                verdict.point.name,
                f"{verdict.point.bits:.3f}",
                plus_minus(verdict.spread),
                "" if ours is None else f"{ours.gap:.4f}",
                between,
                "" if math.isnan(verdict.ratio) else f"{verdict.ratio:.2f}",
                "" if apart is None else f"{apart.mean:+.4f} ± {apart.error:.4f}",
                answer(verdict),
            )
        )
    head = (
        "point", "effective bits", "gap", "our curve there", "between", "ours / theirs",
        "over ours of no more bits", "above by a third",
    )  # fmt: skip
    return table(head, rows)


def answer(verdict: Verdict) -> str:
    """One word."""
    if not verdict.judged:
        return f"not judged: outside of {LOW:g} to {HIGH:g} bits"
    if verdict.ours is None:
        return "not judged: ours has no point of so few bits"
    return "yes" if verdict.above else "**no**"


def summary(found: Sequence[Verdict]) -> str:
    """How many points lie above our curve by a third of their gap, and which do not, and why."""
    judged = [verdict for verdict in found if verdict.judged and verdict.ours is not None]
    left = [verdict for verdict in judged if not verdict.above]
    bits = f"{LOW:g} to {HIGH:g} effective bits"
    if not judged:
        return f"No point of a library at {bits} was measured."
    if not left:
        worst = max(judged, key=lambda verdict: verdict.ratio)
        return (
            f"All {len(judged)} points of libraries at {bits} lie above our curve by at least a "
            f"third of their gap; the nearest is {worst.point.name}, of whose gap ours is "
            f"{worst.ratio:.2f}."
        )
    lines = [
        f"{len(judged) - len(left)} of {len(judged)} points of libraries at {bits} lie above our "
        "curve by at least a third of their gap. Not:",
        "",
        *(f"- {verdict.point.name}: {why(verdict)}" for verdict in left),
    ]
    return "\n".join(lines)


def why(verdict: Verdict) -> str:
    """What keeps a point near our curve, as far as figures say it."""
    ours, apart = verdict.ours, verdict.apart
    assert ours is not None
    assert apart is not None
    measured = (
        f"{verdict.point.gap:.4f} at {verdict.point.bits:.3f} bits, ours {ours.gap:.4f}; it is "
        f"{apart.mean:+.4f} ± {apart.error:.4f} over `{verdict.nearest}`"
    )
    if verdict.within_noise:
        return f"{measured}, which is noise: this text cannot tell the two apart"
    side = "above" if apart.mean > 0 else "below"
    return f"{measured}, {side} it beyond noise"


def not_run(missing: Mapping[str, str], left: Mapping[str, Sequence[int | None]]) -> str:
    """What the run lacks, by case: what cannot be run and why, and seeds that were not."""
    lines = [f"- {name}: {reason}" for name, reason in missing.items()]
    parts = []
    for name, seeds in left.items():
        numbers = ", ".join(str(seed) for seed in seeds if seed is not None)
        parts.append(f"{name} (seeds {numbers})" if numbers else name)
    if parts:
        lines.append(f"- not run: {'; '.join(parts)}")
    return "\n".join(lines)


def plus_minus(found: Spread) -> str:
    """``0.0497 ± 0.0021``, or the mean alone of one run."""
    return f"{found.mean:.4f}" + (f" ± {found.deviation:.4f}" if found.seeds > 1 else "")


def _types(results: Sequence[Result]) -> str:
    """Which types llama.cpp stored, where it could not store what was wanted."""
    notes = [note for note in results[0].notes if note.startswith("types of the weights: ")]
    said = notes[0].removeprefix("types of the weights: ").partition(";")[0] if notes else ""
    return said if "," in said else ""
