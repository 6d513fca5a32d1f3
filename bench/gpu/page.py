"""The Markdown of one run."""

from collections.abc import Iterator

from bench.common.markdown import header
from bench.common.markdown import row as line

from .linears import BASELINE, PACKED, Row
from .result import DRY, Result, targets
from .step import Models, Step

VERDICTS = {True: "met", False: "**missed**", None: "open"}


def page(result: Result) -> str:
    """All tables; of a dry run without a single time."""
    return "\n".join(_lines(result)) + "\n"


def _lines(result: Result) -> Iterator[str]:
    card = result.card
    if not card.measured:
        yield f"**{DRY}.** No GPU was used; the code ran in Triton's interpreter at toy sizes."
        yield ""
    yield f"{result.date}, {card.name}, driver {card.driver}, capability {card.capability},"
    yield f"Python {card.python}, {', '.join(f'{k} {v}' for k, v in card.versions.items())}."
    yield f"`{result.command}`, {result.seconds:.0f} s."
    if card.measured:
        yield (
            f"Copies {card.copy_bytes_per_second / 1e9:,.0f} GB/s read and written, bf16 products "
            f"{card.bf16_flops / 1e12:,.0f} TFLOP/s; floors below are computed from these two."
        )
    for part in result.unfinished:
        yield f"Not finished: {part}."
    yield from ("", header(("target", "wanted", "found", ""), left=4))
    for target in targets(result):
        yield line((target.name, target.wanted, target.found, VERDICTS[target.met]))
    yield from _linears(result)
    if result.models is not None:
        yield from _models(result.models, measured=card.measured)
    if result.compile is not None:
        yield from _compile(result)


def _linears(result: Result) -> Iterator[str]:
    if not result.rows:
        return
    methods = list(
        dict.fromkeys(name for row in result.rows for name in (*row.seconds, *row.failed))
    )
    others = [name for name in methods if name not in (BASELINE, PACKED)]
    yield ""
    yield (
        "Linears, microseconds of a call; weights that are read in turn exceed the L2. *Deviation* "
        "is the largest one from the formula in fp64, as a share of what rounding explains."
    )
    yield ""
    head = ["model", "layer", "rows x columns", "M", BASELINE, PACKED, *others]
    head += ["speed-up", "GB/s", "share of the floor", "deviation"]
    yield header(head, left=3)
    for row in result.rows:
        cells = [row.model, row.layer, f"{row.rows} x {row.columns}", str(row.tokens)]
        cells += [_time(row, name, result.card.measured) for name in (BASELINE, PACKED, *others)]
        cells += _rates(row) if result.card.measured else ["", "", ""]
        cells.append("" if row.deviation is None else f"{row.deviation:.2f}")
        yield line(cells)
    for name in others:
        why = dict.fromkeys(row.failed[name] for row in result.rows if name in row.failed)
        if why:
            yield f"\n{name} could not be measured everywhere: {'; '.join(why)}."


def _time(row: Row, name: str, measured: bool) -> str:
    if name not in row.seconds:
        return "failed" if name in row.failed else ""
    if not measured:
        return "ran"
    host = " (eager)" if row.how[name] == "eager" else ""
    return f"{1e6 * row.seconds[name]:.1f}{host}"


def _rates(row: Row) -> list[str]:
    if row.speedup is None or row.bandwidth is None:
        return ["", "", ""]
    share = row.floor_seconds / row.seconds[PACKED]
    return [f"{row.speedup:.2f} x", f"{row.bandwidth / 1e9:,.0f}", f"{share:.0%}"]


def _models(models: Models, *, measured: bool) -> Iterator[str]:
    yield ""
    yield f"A block, and a model of {models.layers} layers, with random weights in qdc's format."
    for method, nbytes in models.weight_bytes.items():
        finite = "finite" if models.finite.get(method) else "not all finite"
        size = f"{nbytes / 1e9:.2f} GB" if measured else f"{nbytes:,} B"
        yield f"Resident weights of {method}: {size}; its logits are {finite}."
    head = ["step of", "batch x length", f"{BASELINE} ms", f"{PACKED} ms", "speed-up"]
    head += [f"{BASELINE} tokens/s", f"{PACKED} tokens/s", f"{BASELINE} peak", f"{PACKED} peak"]
    yield from ("", header(head, left=2))
    for step in models.steps:
        cells = [step.what, f"{step.batch} x {step.length}"]
        cells += _step(step) if measured else ["ran" if step.seconds else ""] * 2 + [""] * 5
        yield line(cells)


def _step(step: Step) -> list[str]:
    both, methods = {BASELINE, PACKED} <= set(step.seconds), (BASELINE, PACKED)
    known = [name in step.seconds for name in methods]
    times = [
        f"{1e3 * step.seconds[m]:.3f}" if k else "" for m, k in zip(methods, known, strict=True)
    ]
    gain = f"{step.seconds[BASELINE] / step.seconds[PACKED]:.2f} x" if both else ""
    rates = [
        f"{step.tokens_per_second(m):,.0f}" if k else ""
        for m, k in zip(methods, known, strict=True)
    ]
    peaks = [f"{step.peak_bytes[m] / 1e9:.2f} GB" if m in step.peak_bytes else "" for m in methods]
    return [*times, gain, *rates, *peaks]


def _compile(result: Result) -> Iterator[str]:
    found = result.compile
    assert found is not None
    yield ""
    yield (
        f"Compile of one region on {found.device}, `{found.pipeline}`, {found.samples} samples of "
        f"{found.length} tokens, random weights:"
    )
    if found.failed:
        yield f"failed: {found.failed}."
        return
    yield from ("", header(("pass", "seconds")))
    measured = result.card.measured
    for name, seconds in {**found.passes, "everything": found.seconds}.items():
        yield line((name, f"{seconds:.2f}" if measured else "ran"))
