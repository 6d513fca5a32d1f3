"""Lay a report out as one HTML file: no script, no request, legible in light and in dark.

Every text comes from the template engine, which escapes it; only the drawings of ``figures``, which
hold no name that a user chose, go in as they are.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from qdc.evaluation.evaluate import Comparison
from qdc.ir.annotations import runs
from qdc.report import figures
from qdc.report.model import CompileReport, EvaluationReport, LayerReport
from qdc.units import size

MOST_FACETS = 12
"""With more kinds of layers than this, one drawing shows them all."""
RANGE = 1e3
"""A heat map of errors spans at most this ratio."""
Facet = dict[str, Any]


def render(report: CompileReport) -> str:
    """The report as one HTML page that opens offline: styles and figures are part of it."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": size, "runs": runs, "digits": _digits}
    return environment.get_template("page.html.j2").render(
        report=report,
        title=Path(report.out).name if report.out else report.family,
        kinds=_kinds(report.layers),
        order_facets=_order_facets(report.layers),
        order_counts=_order_counts(report.layers),
        order_legend=sorted(figures.ORDER_OPACITY.items()),
        depth_facets=_depth_facets(report.layers),
        error_facets=_error_facets(report.layers),
        fill=",".join(map(str, figures.FILL)),
        faintest=figures.FAINTEST,
        mean_error=_mean([layer.error for layer in report.layers if layer.error is not None]),
        loss=None if report.evaluation is None else _loss(report.evaluation),
        overhead=report.bytes_after - report.tensor_bytes,
        longest=max((row.seconds for row in report.passes), default=0) or 1,
        highest=max((row.peak_bytes for row in report.passes), default=0) or 1,
        fates=_fates(report),
    )


def _kinds(layers: Sequence[LayerReport]) -> list[dict[str, Any]]:
    """One row a kind of layer: how many, bits, errors."""
    rows = []
    for kind, mine in _by_kind(layers).items():
        weights = sum(layer.weights for layer in mine)
        errors = [layer.error for layer in mine if layer.error is not None]
        rows.append(
            {
                "kind": kind,
                "layers": len(mine),
                "weights": weights,
                "sign_bits": sum(layer.payload_bits for layer in mine) / weights,
                "effective_bits": 8 * sum(layer.nbytes for layer in mine) / weights,
                "mean": _mean(errors),
                "worst": max(errors, default=None),
            }
        )
    return rows


def _order_counts(layers: Sequence[LayerReport]) -> dict[int, int]:
    """How many blocks have each order."""
    return dict(sorted(Counter(order for layer in layers for order in layer.orders).items()))


def _order_facets(layers: Sequence[LayerReport]) -> list[Facet]:
    """One heat map of orders a kind; none if all blocks have one order, which a line can say."""
    found = {kind: [x.orders for x in mine if x.orders] for kind, mine in _facets(layers).items()}
    if len(_order_counts(layers)) < 2:
        return []
    widest = max(len(row) for rows in found.values() for row in rows)
    return [
        {"caption": kind, "svg": Markup(figures.order_map(rows, widest))}
        for kind, rows in found.items()
        if rows
    ]


def _depth_facets(layers: Sequence[LayerReport]) -> list[Facet]:
    """One line of errors over depth a kind."""
    lines = {
        kind: [layer.error for layer in mine if layer.error is not None]
        for kind, mine in _facets(layers).items()
    }
    lines = {kind: line for kind, line in lines.items() if line}
    bounds = _bounds([value for line in lines.values() for value in line])
    if bounds is None:
        return []
    return [
        {
            "caption": kind,
            "note": f"mean {_digits(_mean(line))}",
            "svg": Markup(figures.depth_lines(list(lines.values()), place, *bounds)),
        }
        for place, (kind, line) in enumerate(lines.items())
    ]


def _error_facets(layers: Sequence[LayerReport]) -> dict[str, Any] | None:
    """One heat map of errors by block a kind, and the bounds of their colours."""
    found = {
        kind: [layer.block_errors for layer in mine if layer.block_errors]
        for kind, mine in _facets(layers).items()
    }
    bounds = _bounds([v for rows in found.values() for row in rows for v in row])
    if bounds is None:
        return None
    widest = max(len(row) for rows in found.values() for row in rows)
    maps = [
        {"caption": kind, "svg": Markup(figures.error_map(rows, widest, *bounds))}
        for kind, rows in found.items()
        if rows
    ]
    return {"maps": maps, "low": bounds[0], "high": bounds[1]}


def _loss(evaluation: EvaluationReport) -> dict[str, Any]:
    """Rows and drawings of a measurement."""
    result = evaluation.result
    compared = isinstance(result, Comparison)
    mine = result.candidate if isinstance(result, Comparison) else result
    ratios = [row.ratio for row in mine.ratios]
    losses = [row.loss for row in mine.ratios]
    ordered = sorted(range(len(ratios)), key=ratios.__getitem__)
    rows: list[dict[str, Any]] = [
        {"ratio": row.ratio, "tokens": row.tokens, "loss": row.loss} for row in mine.ratios
    ]
    original = rises = None
    if isinstance(result, Comparison):
        original = [row.loss for row in result.original.ratios]
        rises = [(row.rise, row.standard_error) for row in result.differences]
        for row, there, (rise, error) in zip(rows, original, rises, strict=True):
            gap = result.original.unigram - there
            row |= {"original": there, "rise": rise, "error": error}
            row["share"] = rise / gap if gap > 0 else None
    drawn = [
        figures.loss_lines(
            [ratios[i] for i in ordered],
            [losses[i] for i in ordered],
            None if original is None else [original[i] for i in ordered],
        )
    ]
    if rises is not None:
        chosen = [rises[i] for i in ordered]
        drawn.append(
            figures.rise_bars(
                [ratios[i] for i in ordered], [r for r, _ in chosen], [e for _, e in chosen]
            )
        )
    return {
        "rows": rows,
        "compared": compared,
        "evaluation": mine,
        "result": result,
        "figures": [Markup(drawing) for drawing in drawn],
    }


def _fates(report: CompileReport) -> list[dict[str, Any]]:
    """Tensors and weights by what became of them and why."""
    tensors: Counter[tuple[str, str]] = Counter()
    weights: Counter[tuple[str, str]] = Counter()
    for row in report.coverage:
        tensors[row.status, row.reason] += 1
        weights[row.status, row.reason] += row.weights
    total = weights.total() or 1
    return [
        {
            "status": status,
            "reason": reason,
            "tensors": count,
            "weights": weights[status, reason],
            "share": weights[status, reason] / total,
        }
        for (status, reason), count in tensors.items()
    ]


def _by_kind(layers: Sequence[LayerReport]) -> dict[str, list[LayerReport]]:
    found: dict[str, list[LayerReport]] = {}
    for layer in layers:
        found.setdefault(layer.kind, []).append(layer)
    return found


def _facets(layers: Sequence[LayerReport]) -> dict[str, list[LayerReport]]:
    found = _by_kind(layers)
    return found if len(found) <= MOST_FACETS else {"all layers": list(layers)}


def _bounds(values: Sequence[float]) -> tuple[float, float] | None:
    """Lowest and highest positive value, not further apart than ``RANGE``; None if all are 0."""
    positive = [value for value in values if value > 0]
    if not positive:
        return None
    high = max(positive)
    return min(max(min(positive), high / RANGE), high / 2), high


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _digits(value: float | None) -> str:
    """Three significant digits, or a dash."""
    return "–" if value is None else f"{value:#.3g}".rstrip(".")
