"""Write what ``qdc compare`` found into docs/quality.md: its table, its plot, options side by side.

python -m bench.quality.compared DIR/compare.json
python -m bench.quality.compared DIR/compare.json --vary by-geometry.json --vary by-feedback.json
python -m bench.quality.compared DIR/compare.json --part pretrained

The others are what ``qdc compare --vary ... --json`` printed. ``--part`` says which part of a page
it is: the quantizers on the embedded model, or the methods on the pretrained causal model that
``bench.smollm2`` makes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.common.files import write
from bench.common.markdown import replace_part, table
from bench.common.processes import ROOT
from qdc.comparing.figures import Point, loss_by_bits
from qdc.comparing.sheet import ratio_text
from qdc.comparing.table import CompareResult, MethodRow, RiseRow
from qdc.report.drawing import standalone

PARTS = {
    "quantizers": ("bench.quality: quantizers", "quantizers.svg"),
    "pretrained": ("bench.quality: pretrained causal model", "pretrained.svg"),
}
"""Of the page, with the plot of each."""
VARIED = "bench.quality: options"


def main(arguments: list[str] | None = None) -> int:
    """Rewrite both parts and the plot."""
    given = _parser().parse_args(arguments)
    compared = read(given.compared)
    docs = given.docs
    page = docs / "quality.md"
    text = page.read_text(encoding="utf-8")
    part, drawn = PARTS[given.part]
    text = replace_part(text, part, methods(compared, drawn))
    if given.vary:
        varied = [options(read(path)) for path in given.vary]
        text = replace_part(text, VARIED, "\n\n".join(varied))
    write(standalone(plot(compared)), docs / "quality" / drawn)
    write(text, page)
    return 0


def read(path: Path) -> CompareResult:
    """What a comparison left, or printed with ``--json``."""
    return CompareResult.model_validate_json(path.read_text(encoding="utf-8"))


def methods(compared: CompareResult, drawn: str) -> str:
    """The setting in a line, the plot and the table: a row for each method that was measured."""
    rows = [row for row in compared.rows if row.rises]
    head = (
        "method", "nominal", "code bits", "effective", "file, MB",
        *(f"rise at {ratio_text(each.ratio)}" for each in compared.original),
        "s.e.", "KL", "top-1", "processor s", "memory, MB",
    )  # fmt: skip
    original = ", ".join(f"{r.loss:.3f} at {ratio_text(r.ratio)}" for r in compared.original)
    masks = "" if compared.ratio is None else f", {compared.masks} drawing of masks a ratio"
    setting = (
        f"{compared.created[:10]}, qdc {compared.qdc}, calibration seeds "
        f"{', '.join(map(str, compared.seeds))}; {'; '.join(compared.held_out_text.said)}"
        f"{masks}; loss of the original {original}."
    )
    return "\n\n".join(
        [
            setting,
            f"![Loss against effective bits of every quantizer](quality/{drawn})",
            table(head, (cells(row, compared) for row in rows)),
        ]
    )


def cells(row: MethodRow, compared: CompareResult) -> Sequence[str]:
    """Figures of one method; the standard error is that of the middle ratio, over the text."""
    middle = row.at(compared.ratio)
    found = (row.code_bits, row.effective_bits, row.file_bytes, row.divergence, row.top1)
    assert middle is not None
    assert None not in found
    code, effective, nbytes, divergence, top = (float(each or 0) for each in found)
    return (
        f"`{row.name}`",
        "" if row.nominal_bits is None else f"{row.nominal_bits:g}",
        f"{code:.3f}", f"{effective:.3f}", f"{nbytes / 1e6:.2f}",
        *(rise(row.at(each.ratio)) for each in compared.original),
        f"{middle.standard_error:.4f}",
        f"{divergence:.4f}", f"{top:.1%}",
        f"{row.processor_seconds or 0:.0f}", f"{(row.peak_bytes or 0) / 1e6:.0f}",
    )  # fmt: skip


def rise(found: RiseRow | None) -> str:
    """``0.0497 ± 0.0021``."""
    assert found is not None
    by_seed = "" if found.deviation is None else f" ± {found.deviation:.4f}"
    return f"{found.rise:.4f}{by_seed}"


def options(compared: CompareResult) -> str:
    """Values of an option side by side: the middle ratio's rises, and all ratios' differences."""
    ratios = [each.ratio for each in compared.original]
    lines: dict[str, list[str]] = {}
    by_method = {(v.method, v.base, v.value, v.ratio): v for v in compared.variations}
    for method, base, value, ratio in by_method:
        if ratio != compared.ratio:
            continue
        middle = by_method[method, base, value, ratio]
        line = [f"`{method}`", f"{middle.base_rise:.4f}", f"{middle.rise:.4f}"]
        for each in ratios:
            found = by_method[method, base, value, each]
            ends = found.interval
            between = "" if ends is None else f" ({ends[0]:+.3f} .. {ends[1]:+.3f})"
            line.append(f"{found.difference:+.4f}{between}")
        lines[method] = line
    first = next(iter(compared.variations))
    head = (
        f"{first.option}", f"{first.base}, rise at {ratio_text(compared.ratio)}", first.value,
        *(f"difference at {ratio_text(each)}" for each in ratios),
    )  # fmt: skip
    return table(head, lines.values())


def plot(compared: CompareResult) -> str:
    """Loss at the middle ratio against effective bits."""
    points = []
    for row in compared.rows:
        found = row.at(compared.ratio) if row.rises else None
        if found is not None and row.effective_bits is not None:
            points.append(
                Point(row.name, row.effective_bits, found.rise, found.interval, found.deviation)
            )
    return loss_by_bits(points, "rise of the cross-entropy, nats a token")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality.compared", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("compared", type=Path, help="compare.json of a comparison")
    parser.add_argument("--part", choices=PARTS, default="quantizers", help="of the page")
    parser.add_argument("--vary", type=Path, action="append", default=[], help="of an option")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of quality.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
