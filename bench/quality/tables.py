"""The generated parts of the page, as Markdown."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from bench.common.markdown import table
from bench.common.statistics import spearman
from qdc.comparing.result import Result
from qdc.comparing.statistics import MIDDLE, Spread, difference, gap, window_error
from qdc.evaluation.evaluate import RATIOS

from .jobs import Job, Settings
from .targets import Found, Target

Methods = Mapping[str, Sequence[Result]]
Questions = Mapping[str, tuple[str, Methods]]
MEGA = 1e6
FEWEST = 3
"""Points below which no correlation is given."""


def setting(jobs: Sequence[Job], results: Mapping[str, Result], settings: Settings) -> str:
    """When, on what and from what the figures below were taken."""
    runs = list(results.values())
    if not runs:
        return "Nothing has been run."
    days = sorted(result.created[:10] for result in runs)
    machine = Counter(result.environment["machine"] for result in runs).most_common(1)[0][0]
    versions = sorted({f"{k} {r.environment[k]}" for r in runs for k in ("qdc", "python", "torch")})
    libraries = sorted({r.version for r in runs} - {v for v in versions if v.startswith("qdc")})
    threads = sorted({result.cost.threads for result in runs})
    loads = [result.cost.load[0] for result in runs]
    seeds = sorted({job.seed for job in jobs if job.seed is not None and job.path in results})
    left = [job.path for job in jobs if job.path not in results]
    rows = [
        ("date", days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"),
        ("source", settings.tag or "not named"),
        ("model", settings.model.name),
        ("versions", ", ".join(versions)),
        ("libraries", ", ".join(libraries) or "none"),
        ("machine", machine),
        ("threads of a job", ", ".join(map(str, threads))),
        ("load average before a job", f"{min(loads):.1f} to {max(loads):.1f}"),
        ("calibration seeds", ", ".join(map(str, seeds)) or "none"),
        ("held-out text", f"{settings.windows} windows, mask ratios {_ratios()}, 3 masks each"),
        ("jobs", f"{len(results)} of {len(jobs)}"),
        ("processor time", f"{sum(r.cost.processor_seconds for r in runs) / 60:.0f} minutes"),
    ]
    if left:
        shown = ", ".join(f"`{path}`" for path in left[:12])
        rows.append(("not run", shown + (f" and {len(left) - 12} more" if len(left) > 12 else "")))
    return table(("", ""), rows, left=2)


def checklist(promises: Iterable[Target]) -> str:
    """The targets, each with what was measured and the verdict."""
    verdicts = {True: "met", False: "**not met**", None: "not measured"}
    rows = [(t.text, "" if t.met is None else t.measured, verdicts[t.met]) for t in promises]
    return table(("target", "measured", ""), rows, left=3)


def method_table(methods: Methods, families: Mapping[str, str]) -> str:
    """Bits, losses and costs of every method, best first."""
    ordered = sorted(methods, key=lambda name: gap(methods[name]).mean)
    head = (
        "method", "", "code bits", "effective bits", "file, MB",
        *(f"rise at {ratio:g}" for ratio in RATIOS), "s.e.", "layer error",
        "seconds", "processor s", "memory, MB",
    )  # fmt: skip
    rows = []
    for name in ordered:
        results = methods[name]
        files = [r.file_bytes for r in results if r.file_bytes is not None]
        errors = [_mean_error(r) for r in results if r.drift]
        rows.append(
            (
                f"`{name}`" if families[name] == "preset" else name,
                families[name],
                f"{_mean(r.sign_bits for r in results):.3f}",
                f"{_mean(r.effective_bits for r in results):.3f}",
                f"{_mean(files) / MEGA:.2f}" if files else "",
                *(_plus_minus(gap(results, ratio)) for ratio in RATIOS),
                f"{window_error(results):.4f}",
                f"{_mean(errors):.4f}" if errors else "",
                f"{_mean(r.cost.seconds for r in results):.1f}",
                f"{_mean(r.cost.processor_seconds for r in results):.1f}",
                f"{max(r.cost.peak_bytes for r in results) / MEGA:.0f}",
            )
        )
    return table(head, rows, left=2)


def kind_table(methods: Methods) -> str:
    """Mean held-out output error of the layers of each kind; in brackets on calibration states."""
    kinds = dict.fromkeys(
        _kind(name)
        for results in methods.values()
        for r in results
        if r.drift
        for name in r.drift.layers
    )
    rows = []
    for name, results in methods.items():
        cells = []
        for kind in kinds:
            held_out = [
                v for r in results if r.drift for k, v in r.drift.layers.items() if _kind(k) == kind
            ]
            own = [
                v.error
                for r in results
                for k, v in r.layers.items()
                if _kind(k) == kind and v.error is not None
            ]
            cells.append(
                (f"{_mean(held_out):.4f}" if held_out else "")
                + (f" ({_mean(own):.4f})" if own else "")
            )
        rows.append((name, *cells))
    return table(("method", *kinds), rows)


def timing_table(timed: Methods) -> str:
    """What ran alone on the machine."""
    if not timed:
        return "Not measured."
    rows = []
    for name, results in timed.items():
        result = results[0]
        longest = sorted(result.passes.items(), key=lambda item: -item[1])[:4]
        rows.append(
            (
                name,
                f"{result.cost.seconds:.1f}",
                f"{result.cost.processor_seconds:.1f}",
                str(result.cost.threads),
                f"{result.cost.load[0]:.1f}",
                f"{result.cost.peak_bytes / MEGA:.0f}",
                ", ".join(f"{step} {seconds:.1f}" for step, seconds in longest),
            )
        )
    head = (
        "",
        "seconds",
        "processor s",
        "threads",
        "load before",
        "memory, MB",
        "longest passes, s",
    )
    return table(head, rows)


def predictor_values(found: Found) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Every measure that could stand for the gap, by title and method; and the gaps.

    Methods and ablations alike, means over seeds. Only layers and regions within the blocks count.
    """
    measures: dict[str, dict[str, float]] = {}
    gaps: dict[str, float] = {}
    for path, results in found.items():
        drifts = [r.drift for r in results if r.drift]
        if not drifts or path.startswith("timing/"):
            continue
        gaps[path] = gap(results).mean
        own = [e for r in results for e in (v.error for v in r.layers.values()) if e is not None]
        values = {
            "layers, calibration": own,
            "layers, held out": [e for d in drifts for e in d.layers.values()],
            "residual stream, mean": [e for d in drifts for e in d.regions],
            "residual stream, end": [d.regions[-1] for d in drifts],
            "divergence of predictions": [d.divergence for d in drifts],
        }
        for title, measured in values.items():
            if measured:
                measures.setdefault(title, {})[path] = _mean(measured)
    return measures, gaps


def correlation_table(found: Found) -> str:
    """How well each measure ranks methods as their gaps do: all, and the better half alone."""
    measures, gaps = predictor_values(found)
    better = {p: g for p, g in gaps.items() if g <= statistics.median(gaps.values())}
    rows = []
    for title, values in measures.items():
        cells = []
        for group in (gaps, better):
            paths = [path for path in values if path in group]
            ready = len({values[p] for p in paths}) >= FEWEST and len({gaps[p] for p in paths}) > 1
            given = (
                spearman([values[p] for p in paths], [gaps[p] for p in paths]) if ready else None
            )
            cells += [str(len(paths)), "" if given is None else f"{given:.3f}"]
        rows.append((title, *cells))
    head = (
        "relative squared error of",
        "methods",
        "rank correlation",
        "better half",
        "rank correlation",
    )
    return table(head, rows)


def ablation_tables(questions: Questions) -> str:
    """One table a question."""
    parts = []
    for question, (base, variants) in questions.items():
        rows = []
        for name, results in variants.items():
            apart = ""
            if name != base and base in variants:
                found = difference(results, variants[base])
                apart = f"{found.mean:+.4f} ± {found.error:.4f}"
            rows.append(
                (
                    f"**{name}**" if name == base else name,
                    f"{_mean(r.effective_bits for r in results):.3f}",
                    *(_plus_minus(gap(results, ratio)) for ratio in RATIOS),
                    apart,
                    f"{_mean(_mean_error(r) for r in results):.4f}",
                    f"{_mean(r.cost.processor_seconds for r in results):.1f}",
                )
            )
        head = (
            question, "effective bits", *(f"rise at {ratio:g}" for ratio in RATIOS),
            f"difference at {MIDDLE:g}", "layer error", "processor s",
        )  # fmt: skip
        parts.append(table(head, rows))
    return "\n\n".join(parts) or "Not measured."


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def _mean_error(result: Result) -> float:
    return math.nan if result.drift is None else _mean(result.drift.layers.values())


def _plus_minus(found: Spread) -> str:
    return f"{found.mean:.4f}" + (f" ± {found.deviation:.4f}" if found.seeds > 1 else "")


def _kind(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _ratios() -> str:
    return ", ".join(f"{ratio:g}" for ratio in RATIOS)
