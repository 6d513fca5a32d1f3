"""From results over seeds to the rows of the table."""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

from qdc.comparing.jobs import Row
from qdc.comparing.result import Result
from qdc.comparing.statistics import Ratio, agreement, at, difference, gap, loss, spread
from qdc.comparing.table import LossRow, MethodRow, RiseRow, Variation
from qdc.comparing.vary import Axis

Found = Mapping[str, Result]
"""Results by the path of their job."""


def method_rows(
    rows: Iterable[Row], found: Found, failed: Mapping[str, str], ratio: Ratio
) -> tuple[MethodRow, ...]:
    """One row a variant, best first at this ratio, those without figures last."""
    made = [method_row(row, found, failed) for row in rows]

    def place(row: MethodRow) -> float:
        measured = row.at(ratio)
        return math.inf if measured is None else measured.rise

    return tuple(sorted(made, key=place))


def method_row(row: Row, found: Found, failed: Mapping[str, str]) -> MethodRow:
    """The figures of a variant, of the seeds that were measured."""
    variant, method = row.variant, row.variant.method
    results = results_of(row, found)
    named = {
        "name": variant.name,
        "method": method.name,
        "settings": dict(variant.settings),
        "pipeline": variant.pipeline or method.pipeline,
        "source": method.source,
        "nominal_bits": method.nominal_bits,
        "error": row.error or _errors(row, found, failed),
        "notes": row.notes,
    }
    if not results:
        return MethodRow.model_validate(named)
    sizes = [r.file_bytes for r in results if r.file_bytes is not None]
    agreed = agreement(results)
    works = [job.work for job in row.jobs if job.work is not None and job.path in found]
    measured: dict[str, object] = {
        "full_pipeline": results[0].what,
        "seeds": tuple(r.seed for r in results),
        "results": tuple(f"{r.digest}.json" for r in results),
        "artifacts": tuple(str(work.keep) for work in works if work.keep is not None),
        "bits_word": results[0].bits_word,
        "code_bits": _mean(r.sign_bits for r in results),
        "effective_bits": _mean(r.effective_bits for r in results),
        "file_bytes": _mean(sizes) if sizes else None,
        "rises": tuple(rise_row(results, part.ratio) for part in results[0].candidate),
        "seconds": _mean(r.cost.seconds for r in results),
        "processor_seconds": _mean(r.cost.processor_seconds for r in results),
        "peak_bytes": max(r.cost.peak_bytes for r in results),
        "layer_errors": layer_errors(results),
        "unseen_layers": results[0].drift.unseen if results[0].drift else (),
    }
    if agreed is not None:
        measured |= {
            "top1": agreed[0].mean, "top1_interval": agreed[0].interval,
            "divergence": agreed[1].mean, "divergence_interval": agreed[1].interval,
        }  # fmt: skip
    return MethodRow.model_validate({**named, **measured})


def rise_row(results: Sequence[Result], ratio: Ratio) -> RiseRow:
    """The rise at one ratio, over seeds and over documents."""
    over_seeds, over_text = gap(results, ratio), difference(results, None, ratio)
    return RiseRow(
        ratio=ratio,
        rise=over_seeds.mean,
        standard_error=_known(over_text.error),
        interval=over_text.interval,
        deviation=_known(over_seeds.deviation),
        by_seed=tuple(gap([each], ratio).mean for each in results),
    )


def loss_rows(result: Result) -> tuple[LossRow, ...]:
    """The original's losses."""
    rows = []
    for part in result.original:
        mean = loss(part, result.owners)
        rows.append(
            LossRow(
                ratio=part.ratio, loss=mean.mean, interval=mean.interval, tokens=sum(part.tokens)
            )
        )
    return tuple(rows)


def layer_errors(results: Sequence[Result]) -> dict[str, float]:
    """Mean over seeds of each layer's error."""
    drifts = [r.drift.layers for r in results if r.drift is not None]
    names = drifts[0] if drifts else {}
    return {n: _mean(d[n] for d in drifts) for n in names if all(n in d for d in drifts)}


def variations(rows: Sequence[Row], axes: Sequence[Axis], found: Found) -> Iterator[Variation]:
    """Every value of every axis against the first one, method by method, at every ratio."""
    results = {_key(row): results_of(row, found) for row in rows}
    for axis in axes:
        for row in rows:
            settings, method = row.variant.settings, row.variant.method.name
            base, value = axis.values[0], settings.get(axis.option)
            if value is None or value == base:
                continue
            others = {k: v for k, v in settings.items() if k != axis.option}
            mine = results[_key(row)]
            there = results.get((method, _frozen({**settings, axis.option: base})), [])
            shared = [(a, b) for a in mine for b in there if a.seed == b.seed]
            if not shared or not shared[0][0].candidate:
                continue
            here, due = [a for a, _ in shared], [b for _, b in shared]
            for part in here[0].candidate:
                apart = difference(here, due, part.ratio)
                each = [difference([a], [b], part.ratio).mean for a, b in shared]
                yield Variation(
                    option=axis.option,
                    method=method,
                    others=others,
                    base=base,
                    value=value,
                    ratio=part.ratio,
                    base_rise=gap(due, part.ratio).mean,
                    rise=gap(here, part.ratio).mean,
                    difference=apart.mean,
                    standard_error=_known(apart.error),
                    interval=apart.interval,
                    deviation=_known(spread(each).deviation),
                )


def results_of(row: Row, found: Found) -> list[Result]:
    """What was measured of a variant."""
    return [found[job.path] for job in row.jobs if job.path in found]


def middle_of(result: Result) -> Ratio:
    """The ratio at which agreement was measured, or the only one there is."""
    agreed = [part.ratio for part in result.candidate if part.agreed]
    return agreed[0] if agreed else at(result.candidate, None).ratio


def _errors(row: Row, found: Found, failed: Mapping[str, str]) -> str:
    """What the jobs of a variant have failed of, each error once."""
    said: dict[str, list[str]] = {}
    for job in row.jobs:
        if job.path not in found:
            said.setdefault(failed.get(job.path, "not run"), []).append(job.path)
    if len(said) == 1 and len(row.jobs) == len(next(iter(said.values()))):
        return next(iter(said))
    return "\n".join(f"{', '.join(paths)}: {error}" for error, paths in said.items())


def _key(row: Row) -> tuple[str, frozenset[tuple[str, str]]]:
    return row.variant.method.name, _frozen(row.variant.settings)


def _frozen(settings: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(settings.items())


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
