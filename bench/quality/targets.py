"""The targets of the benchmark, computed from the results and judged; nothing is set by hand."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from qdc.comparing.result import Result
from qdc.comparing.statistics import difference, gap, quotient

Found = Mapping[str, Sequence[Result]]
"""Results over seeds, by the path of their case."""
NOISE = 2
"""Standard errors that count as noise."""
COMPILE_SECONDS = 90
KNAPSACKS = ("knapsack layer", "knapsack stage", "knapsack model", "knapsack model, loss")
"""What is promised: the allocator's own defaults in each scope."""


@dataclass(frozen=True)
class Target:
    """One promise; ``met`` is None where something it needs has not been measured."""

    text: str
    measured: str
    met: bool | None


def targets(found: Found) -> Iterator[Target]:
    """All of them, in the order of the page."""
    yield _gap_ratio(found, "default", "release", 0.75)
    yield _gap_ratio(found, "best", "release", 0.5)
    yield _gap_ratio(found, "best", "autoround", 0.85)
    yield _no_more_bits(found, "best", "autoround")
    for block in (128, 64):
        yield from _knapsack(found, f"ablation/allocation, blocks of {block}/")
    yield _time_ratio(found, "default", "release", 4, "at most 4 x the time of `release`")
    yield _time_ratio(found, "best", "autoround", 1, "less time than AutoRound")
    yield _whole_compile(found)


def _gap_ratio(found: Found, name: str, other: str, most: float) -> Target:
    text = f"gap of `{name}` at most {most:g} x that of `{other}`"
    here, there = found.get(f"method/{name}"), found.get(f"method/{other}")
    if not here or not there:
        return Target(text, "not measured", None)
    ratio = quotient(here, there)
    by_seed = f", ± {ratio.deviation:.3f} over {ratio.seeds} seeds" if ratio.seeds > 1 else ""
    measured = f"{gap(here).mean:.4f} / {gap(there).mean:.4f} = {ratio.mean:.3f}{by_seed}"
    return Target(text, measured, ratio.mean <= most)


def _no_more_bits(found: Found, name: str, other: str) -> Target:
    text = f"`{name}` at no more effective bits than `{other}`"
    here, there = found.get(f"method/{name}"), found.get(f"method/{other}")
    if not here or not there:
        return Target(text, "not measured", None)
    bits = max(r.effective_bits for r in here), min(r.effective_bits for r in there)
    return Target(text, f"{bits[0]:.4f}, {bits[1]:.4f}", bits[0] <= bits[1])


def _knapsack(found: Found, group: str) -> Iterator[Target]:
    """Each knapsack against the best ratio of ABMP, its best chosen after the fact."""
    ratios = {k: v for k, v in found.items() if k.startswith(f"{group}abmp") and v}
    best = min(ratios, key=lambda path: gap(ratios[path]).mean, default=None)
    title = group.removeprefix("ablation/").removesuffix("/")
    for path, results in found.items():
        name = path.removeprefix(group)
        if name not in KNAPSACKS:
            continue
        text = f"{title}: {name} no worse than the best ABMP ratio, beyond noise"
        if best is None or not results:
            yield Target(text, "not measured", None)
            continue
        apart = difference(results, ratios[best])
        yield Target(
            text,
            f"{gap(results).mean:.4f} against {gap(ratios[best]).mean:.4f} of "
            f"{best.removeprefix(group)}: {apart.mean:+.4f} ± {apart.error:.4f}",
            apart.mean <= NOISE * apart.error,
        )


def _time_ratio(found: Found, name: str, other: str, most: float, what: str) -> Target:
    text = f"`{name}` compiles in {what}"
    here, there = found.get(f"timing/{name}"), found.get(f"timing/{other}")
    if not here or not there:
        return Target(text, "not measured", None)
    times = [results[0].cost for results in (here, there)]
    ratio = times[0].seconds / times[1].seconds
    processor = times[0].processor_seconds / times[1].processor_seconds
    measured = (
        f"{times[0].seconds:.1f} s / {times[1].seconds:.1f} s = {ratio:.2f}; "
        f"processor seconds {processor:.2f}; load before {_loads([*here[:1], *there[:1]])}"
    )
    return Target(text, measured, ratio <= most)


def _whole_compile(found: Found) -> Target:
    text = f"the whole `default` compile under {COMPILE_SECONDS} s on 2 cores"
    results = found.get("timing/default")
    if not results:
        return Target(text, "not measured", None)
    cost = results[0].cost
    measured = f"{cost.seconds:.1f} s on {cost.threads} threads; load before {_loads(results[:1])}"
    return Target(text, measured, cost.seconds < COMPILE_SECONDS)


def _loads(results: Sequence[Result]) -> str:
    return ", ".join(f"{result.cost.load[0]:.1f}" for result in results)
