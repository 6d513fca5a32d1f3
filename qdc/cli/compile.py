"""``qdc compile``: run a job, print the summary."""

import gc
import shlex
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qdc.cli.ranks import is_first
from qdc.cli.terminal import (
    console,
    print_json,
    print_lines,
    print_pipeline,
    print_table,
    progress,
    size,
    table,
)
from qdc.compiling.compiler import compile_model
from qdc.compiling.options import CompileOptions
from qdc.frontend.coverage import spare_tensors
from qdc.report.model import CompileReport

DIGITS = 12
"""Of a digest, for the eye; ``--json`` and the report have all."""
BLOCKS = "geometry=block-diffusion"
"""How a pipeline says that it calibrates block by block."""
NEARLY_ALL = 0.9
"""Relative output error from which on little is left of what a layer did."""
MOST_NAMED = 3
"""Of such layers."""


def compile_command(
    options: CompileOptions,
    *,
    timings: bool,
    remarks: bool,
    arguments: Sequence[str],
    as_json: bool,
) -> None:
    """Compile and report."""
    first = is_first()
    gc.freeze()  # what was imported lives on, and no collection has to walk over it again
    with progress(shown=first) as update:
        report = compile_model(options, update, shlex.join(["qdc", *arguments]))
    if not first:
        return
    if as_json:
        print_json(report.as_data())
        return
    print_summary(console(), report, timings=timings, remarks=remarks)


def print_summary(
    to: Console, report: CompileReport, *, timings: bool = True, remarks: bool = False
) -> None:
    """Print what a compile did."""
    if report.layers:
        print_table(to, _layers(report))
        to.print()
    print_pipeline(to, "pipeline  ", report.pipeline)
    to.print()
    print_table(to, _totals(report))
    if timings:
        to.print()
        print_table(to, _passes(report))
    if remarks:
        print_lines(to, "", *report.remarks)


def _layers(report: CompileReport) -> Table:
    rows = table(
        "layers", "kind", "layers", "weights", report.bits_word, "effective bits", "output error",
        right=(1, 2, 3, 4, 5),
    )  # fmt: skip
    errors = report.error_by_kind()
    for kind in dict.fromkeys(layer.kind for layer in report.layers):
        mine = [layer for layer in report.layers if layer.kind == kind]
        weights = sum(layer.weights for layer in mine)
        rows.add_row(
            kind,
            str(len(mine)),
            f"{weights:,}",
            f"{sum(layer.payload_bits for layer in mine) / weights:.6g}",
            f"{8 * sum(layer.nbytes for layer in mine) / weights:.4f}",
            f"{errors[kind]:.4f}" if kind in errors else "not measured",
        )
    return rows


def _totals(report: CompileReport) -> Table:
    rows = table("summary", "", "")
    if report.effort:
        rows.add_row("effort", report.effort)
    if report.calibration is not None:
        name, mark, digest = report.calibration.rpartition(" sha256:")
        shown = digest if len(digest) <= DIGITS else f"{digest[:DIGITS]}..."
        rows.add_row("calibration", f"{name}{mark}{shown}")
        if report.calibration_left_out:
            rows.add_row("left out", report.calibration_left_out)
        if report.calibration_form:
            rows.add_row("document", report.calibration_form)
        if report.special_tokens_left_out:
            rows.add_row("left out", report.special_tokens_left_out)
        for use in report.calibration_text:
            rows.add_row("text", "\n".join((*use.said, *use.notes)))
            for warning in use.warnings:
                rows.add_row("warning", warning)
        if BLOCKS in report.pipeline:
            rows.add_row("masks", "block by block, behind clean text (block-diffusion)")
        for states in report.calibration_states:
            rows.add_row("states", "\n".join(states.said))
            for warning in states.warnings:
                rows.add_row("warning", warning)
        for certainty in report.calibration_certainty:
            rows.add_row("token weights", certainty.said)
        rows.add_row("forwards", f"{report.layer_forwards:.3f} of each layer and sample")
    if report.layers:
        weights = sum(layer.weights for layer in report.layers)
        bits = report.sign_bits
        exact = f"{bits.numerator}" if bits.denominator == 1 else f"{bits} = {float(bits):.6f}"
        rows.add_row("quantized", f"{len(report.layers)} layers, {weights:,} weights")
        rows.add_row(report.bits_word, f"{exact} a weight, exactly")
        if any(layer.orders for layer in report.layers):
            rows.add_row("orders", _orders(report))
        if any(layer.rotated for layer in report.layers):
            rows.add_row("rotated", _rotated(report))
        rows.add_row("effective bits", f"{report.effective_bits:.4f} a weight, {report.counted}")
        if report.whole_bits is not None:
            rows.add_row(
                "with vocabulary", f"{report.whole_bits:.4f}, embedding and head counted too"
            )
        if report.distilled is not None:
            rows.add_row("distilled", report.distilled.text())
        pooled = sum(layer.routed is not None for layer in report.layers)
        if pooled:
            few = f"{pooled} of {len(report.layers)} layers saw too few routed tokens"
            rows.add_row("experts", f"{few}, calibrated on all")
        lost = [layer.name for layer in report.layers if (layer.error or 0) >= NEARLY_ALL]
        if lost:
            more = f" and {len(lost) - MOST_NAMED} more" if len(lost) > MOST_NAMED else ""
            rows.add_row(
                "lost",
                f"{len(lost)} layers have an output error of {NEARLY_ALL} or more: "
                f"{', '.join(lost[:MOST_NAMED])}{more}",
            )
    rows.add_row("coverage", _coverage(report))
    if report.assumed_fields:
        rows.add_row("assumed", Text(report.assumed_fields))
    if report.unused_fields:
        rows.add_row("not used", Text(report.unused_fields))
    for plugin in report.plugins:
        rows.add_row("plugin", plugin)
    rows.add_row("before", size(report.bytes_before))
    if report.out is not None:
        rows.add_row("after", f"{size(report.bytes_after)}, tensors {size(report.tensor_bytes)}")
        rows.add_row("written", report.out)
    if report.report is not None:
        rows.add_row("report", report.report)
    for dump in report.dumps:
        rows.add_row("dump", dump)
    if report.processes > 1:
        rows.add_row(
            "processes", f"{report.processes}, {size(report.sent_bytes)} sent between them"
        )
    again = f", interrupted and resumed {report.resumed} x" if report.resumed else ""
    rows.add_row("time", f"{report.seconds:.1f} s on {report.device}{again}")
    rows.add_row("peak memory", size(max((p.peak_bytes for p in report.passes), default=0)))
    return rows


def _rotated(report: CompileReport) -> str:
    """How many layers read rotated inputs, and why the others do not."""
    left = [layer for layer in report.layers if not layer.rotated]
    found = f"inputs of {len(report.layers) - len(left)} layers"
    odd = sum(layer.columns % 2 for layer in left)
    return f"{found}; not of {odd} with an odd number of columns" if odd else found


def _orders(report: CompileReport) -> str:
    """How many blocks have each order, and how many layers have more than one."""
    found = [layer.orders for layer in report.layers if layer.orders]
    blocks = sorted(Counter(order for orders in found for order in orders).items())
    counts = ", ".join(
        f"{count:,} block{'s' * (count > 1)} of order {order}" for order, count in blocks
    )
    mixed = sum(len(set(orders)) > 1 for orders in found)
    return f"{counts}; {mixed} of {len(found)} layers mixed"


def _coverage(report: CompileReport) -> str:
    """What becomes of the tensors of the checkpoint."""
    total = len(report.coverage)
    reasons = Counter(row.reason for row in report.coverage if row.status == "kept")
    kept = f"{reasons.total()} kept"
    if reasons:
        kept += f" ({', '.join(f'{count} {reason}' for reason, count in reasons.items())})"
    spare = sum(row.status == "left out" for row in report.coverage)
    kept += f", {spare_tensors(report.coverage)}" if spare else ""
    done = "quantized" if report.layers else "to quantize"
    return (
        f"{total - reasons.total() - spare} tensors {done}, {kept}; "
        f"all {total} tensors of the checkpoint accounted for"
    )


def _passes(report: CompileReport) -> Table:
    rows = table("passes", "pass", "units", "seconds", "peak memory", right=(1, 2, 3))
    for row in report.passes:
        rows.add_row(row.name, str(row.units), f"{row.seconds:.2f}", size(row.peak_bytes))
    return rows
