"""``qdc plan``: what a compile would store, hold and take, before it is run."""

import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from qdc.cli.terminal import (
    at_commas,
    console,
    print_json,
    print_lines,
    print_table,
    size,
    table,
)
from qdc.pipeline.registry import standard_registry
from qdc.planning.forecast import forecast
from qdc.planning.headers import Headers
from qdc.planning.machine import Machine
from qdc.planning.options import ForecastOptions
from qdc.planning.outlook import Choice, Outlook, RegionKind, RuntimeMemory, Verdict
from qdc.planning.ranks import LINK
from qdc.planning.running import RunOutlook, foresee_running, is_compiled
from qdc.planning.verdict import judged
from qdc.streaming.ledger import Peak
from qdc.units import duration

LABELS = 15
"""Columns in front of the text of the summary: its longest label, and the space behind it."""
PARTS = 5
"""Parts of a peak that are shown."""


def plan_command(options: ForecastOptions, *, as_json: bool) -> None:
    """Foresee a compile, or what running an artifact takes, and print it."""
    registry = standard_registry(options.plugins)
    if is_compiled(options.model_dir):
        found = foresee_running(options, registry)
        if as_json:
            print_json(found.as_data())
        else:
            print_running(console(), found)
        return
    gpu, device = options.gpu, options.device
    machine = Machine.here(device) if gpu is None else Machine.elsewhere(gpu)
    machine = machine.asked(options.ranks, options.device_rate)
    headers = Headers(options.model_dir, registry.families)
    outlook = forecast(options, registry, machine, headers=headers)
    outlook = judged(options, registry, machine, outlook, headers)
    if as_json:
        print_json(outlook.as_data())
    else:
        print_outlook(console(), outlook)


def print_outlook(to: Console, outlook: Outlook) -> None:
    """Print tables of what was foreseen."""
    print_table(to, _kinds(outlook))
    to.print()
    print_table(to, _summary(outlook, to.width))
    to.print()
    print_table(to, _passes(outlook))
    if outlook.running:
        to.print()
        print_table(to, _running(outlook.running, outlook.tokens))
    for warning in outlook.warnings:
        print_lines(to, f"warning   {warning}")
    to.print()
    print_table(to, _verdict(outlook))


def print_running(to: Console, found: RunOutlook) -> None:
    """Print what running an artifact takes."""
    rows = table("artifact", "", "")
    rows.add_row("model", found.family)
    rows.add_row("pipeline", "\n".join(at_commas(found.pipeline, to.width - LABELS)))
    rows.add_row("tensors", size(found.tensor_bytes))
    print_table(to, rows)
    to.print()
    print_table(to, _running(found.runtimes, found.tokens))
    to.print()
    rows = table("verdict", "", "")
    for each in found.runtimes:
        fits = each.peak_bytes <= found.memory
        free = found.free_memory
        answer = "yes" if fits else "no"
        if fits and free is not None and free < each.peak_bytes:
            answer = f"yes, but {size(free)} are free now"
        rows.add_row(
            "fits", f"{answer}: {_need(each.peak_bytes, 'memory', found.memory)} by {each.backend}"
        )
    print_table(to, rows)


def _running(runtimes: Sequence[RuntimeMemory], tokens: int) -> Table:
    """What each runtime holds, in a process that does nothing else."""
    title = f"running on a CPU, a forward of {tokens:,} tokens"
    rows = table(title, "runtime", "memory", "of that", right=(1,))
    for each in runtimes:
        parts = {"process": each.process_bytes, **each.parts}
        text = ", ".join(f"{kind} {size(nbytes)}" for kind, nbytes in parts.items())
        if each.peak_bytes > each.running_bytes:
            text += f"; {size(each.peak_bytes)} while it loads"
        rows.add_row(each.backend, size(each.running_bytes), text)
    return rows


def _kinds(outlook: Outlook) -> Table:
    rows = table("layers", "kind", "layers", "rows", "columns", "codec", "stored", right=(1, 2, 3))
    for kind in outlook.kinds:
        stored = "unknown" if kind.nbytes is None else size(kind.nbytes)
        rows.add_row(
            kind.kind, str(kind.layers), f"{kind.rows:,}", f"{kind.columns:,}",
            kind.codec or "unknown", stored,
        )  # fmt: skip
    return rows


def _summary(outlook: Outlook, width: int) -> Table:
    rows = table("plan", "", "")
    rows.add_row("model", outlook.family)
    if outlook.assumed:
        rows.add_row("assumed", outlook.assumed)
    rows.add_row("effort", outlook.effort)
    rows.add_row("pipeline", "\n".join(at_commas(outlook.pipeline, width - LABELS)))
    for regions in outlook.regions:
        rows.add_row("regions", _regions(regions))
    rows.add_row("quantized", f"{outlook.weights:,} weights in {outlook.layers:,} layers")
    rows.add_row("blocks", f"{outlook.blocks:,}")
    kept = [row for row in outlook.coverage if row.status == "kept"]
    rows.add_row(
        "coverage", f"{len(outlook.coverage)} tensors: {len(outlook.coverage) - len(kept)} "
        f"quantized, {len(kept)} kept, none unmapped",
    )  # fmt: skip
    rows.add_row("before", size(outlook.bytes_before))
    rows.add_row("after", after(outlook))
    rows.add_row("host memory", _peak(outlook.host))
    if outlook.device_memory is not None:
        rows.add_row("device memory", _peak(outlook.device_memory))
    if outlook.samples:
        rows.add_row("calibration", f"{outlook.samples:,} samples of {outlook.length:,} tokens")
        for use in outlook.calibration_text:
            rows.add_row("text", "\n".join((*use.said, *use.notes)))
        for states in outlook.calibration_states:
            rows.add_row("states", "\n".join(states.said))
        rows.add_row("forwards", f"{outlook.forwards:.3f} of each layer and sample")
    rows.add_row("operations", f"{outlook.flops:.3g}")
    if outlook.unknown:
        rows.add_row(
            "unknown", f"what {', '.join(outlook.unknown)} hold and compute: they implement no "
            "forecast, and all figures are without them",
        )  # fmt: skip
    return rows


def _regions(kind: RegionKind) -> str:
    """The stages, those of the experts of one wave once."""
    stages = iter(kind.stages)
    waves = [
        list(dict.fromkeys(_any(" ".join(next(stages))) for _ in range(count)))
        for count in kind.waves
    ]
    listed = " | ".join(stage for wave in waves for stage in wave)
    count = "1 region" if kind.regions == 1 else f"{kind.regions} regions"
    together = "" if max(kind.waves) == 1 else f" in {len(kind.waves)} waves"
    weights = f"{kind.weights:,} weights each"
    return f"{count} of {len(kind.stages)} stages{together}: {listed}   {weights}"


def _any(names: str) -> str:
    """``experts.3.up`` as ``experts.*.up``."""
    return re.sub(r"\.\d+\.", ".*.", names)


def after(outlook: Outlook) -> str:
    """What will be written: files, tensors, and how much the allocation may change of it."""
    if not outlook.shards:
        silent = "a pass does not say what it stores"
        return f"unknown: {'; '.join(outlook.uncounted) or silent}"
    count = len(outlook.shards) + len(outlook.beside)
    about = "about " * bool(outlook.beside)
    text = f"{about}{size(outlook.written_bytes)} in {count} file{'s' * (count > 1)}, tensors "
    text += size(outlook.tensor_bytes)
    if outlook.fewer or outlook.more:
        fewer = f"{size(outlook.fewer)} less to" if outlook.fewer else "up to"
        text += f"; {fewer} {size(outlook.more)} more, as the allocation falls"
    return "\n".join((text, *(f"without {what}" for what in outlook.uncounted)))


def _peak(peak: Peak) -> str:
    largest = list(peak.parts.items())
    parts = [f"{kind} {size(nbytes)}" for kind, nbytes in largest[:PARTS]]
    return f"{size(peak.nbytes)} at {peak.moment}\n" + "\n".join(f"  {part}" for part in parts)


def _verdict(outlook: Outlook) -> Table:
    """Does it fit, how long does it take, how much disk; and what else would do."""
    found = outlook.verdict
    assert found is not None, "only a plan with a verdict is printed"
    unknown = ", unknown what is without a forecast" * bool(outlook.unknown)
    rows = table("verdict", "", "")
    rows.add_row("fits", f"{_fit(found, outlook)}{unknown}")
    kind = "an estimate" if outlook.measured else "an estimate from data-sheet peaks, not measured"
    time = f"about {duration(outlook.seconds)} on {outlook.machine}, {kind}"
    rows.add_row("time", f"{time}{unknown}")
    if outlook.ranks > 1:
        rows.add_row("processes", _processes(outlook))
    rows.add_row("disk", _disk(outlook, found.free_disk))
    for choice in found.choices:
        rows.add_row("instead", _choice(choice))
    if not found.fits and not found.choices:
        rows.add_row("instead", "nothing smaller was found that fits; a larger machine")
    return rows


def _processes(outlook: Outlook) -> str:
    """How many, and what they send."""
    sent = f"{size(outlook.sent_bytes)} sent, {duration(outlook.sent_seconds)} at an assumed"
    return (
        f"{outlook.ranks:,}, each with such a device; memory is that of the first one\n"
        f"{sent} {LINK / 1e9:g} GB/s"
    )


def _fit(found: Verdict, outlook: Outlook) -> str:
    """``yes: 0.64 GB of memory, of 25 GB``, for host and device."""
    parts = [_need(outlook.host.nbytes, "memory", found.memory)]
    if outlook.device_memory is not None:
        parts.append(_need(outlook.device_memory.nbytes, "device memory", found.device_memory))
    answer = "yes" if found.fits else f"no, too little {' and '.join(found.lacking)}"
    free = found.free_memory
    if found.fits and free is not None and free < outlook.host.nbytes:
        answer = f"yes, but {size(free)} of memory are free now"
    return f"{answer}: {', '.join(parts)}"


def _need(needed: int, what: str, there: int | None) -> str:
    return f"{size(needed)} of {what}" + ("" if there is None else f" of {size(there)}")


def _disk(outlook: Outlook, free: int | None) -> str:
    scratch = f", {size(outlook.scratch_bytes)} for a while" if outlook.scratch_bytes else ""
    written = size(outlook.written_bytes + outlook.more) if outlook.shards else "unknown"
    return f"{written}{scratch}" + ("" if free is None else f"; {size(free)} are free here")


def _choice(choice: Choice) -> str:
    memory = f"{size(choice.host_bytes)} of memory"
    if choice.device_bytes is not None:
        memory += f" and {size(choice.device_bytes)} of the device's"
    time = f"about {duration(choice.seconds)}"
    return f"{choice.options}\n{memory}, {time}, {size(choice.disk_bytes)} of disk"


def _passes(outlook: Outlook) -> Table:
    shared = outlook.ranks > 1
    rows = table(
        "passes", "pass", "fp32 products", "fp64 products", "elementwise", *["gain"] * shared,
        "time", right=(1, 2, 3, 4, 5),
    )  # fmt: skip
    for cost in outlook.passes:
        known = cost.name not in outlook.unknown
        rows.add_row(
            cost.name, f"{cost.products:.2g}", f"{cost.exact:.2g}", f"{cost.elements:.2g}",
            *[f"{cost.gain:.3g} x"] * shared, duration(cost.seconds) if known else "unknown",
        )  # fmt: skip
    return rows
