"""``qdc export``: write an artifact as others load it, and say what was proved."""

from qdc.cli.terminal import console, print_json, print_lines, print_table, progress, size, table
from qdc.exporting.dense import export_artifact
from qdc.exporting.options import ExportOptions
from qdc.exporting.report import ExportReport, Verification
from qdc.pipeline.registry import standard_registry


def export_command(options: ExportOptions, *, as_json: bool) -> None:
    """Export and print."""
    with progress() as update:
        report = export_artifact(options, standard_registry(options.plugins), update)
    if as_json:
        print_json(report.as_data())
        return
    print_lines(console(), *_summary(report))
    if report.verification is not None:
        _print_proof(report.verification, report.dtype)


def _summary(report: ExportReport) -> list[str]:
    files = "1 file" if report.shards == 1 else f"{report.shards} files"
    lines = [f"wrote {report.out}"]
    if report.packed:
        return [*lines, *_packed(report, files)]
    if not report.types:
        tensors = f"{report.tensors} tensors of {report.dtype}"
        return [*lines, f"  {tensors}, {size(report.nbytes)} in {files}", *_unrotated(report)]
    lines.append(f"  {report.tensors} tensors, {size(report.nbytes)} in {files}")
    total = sum(report.types.values())
    lines += [f"  {kind}: {count:,} weights, {count / total:.1%}"
              for kind, count in report.types.items()]  # fmt: skip
    if report.decoded:
        lines.append(f"  {report.decoded} quantized layers are no blocks of ggml: decoded")
    return [*lines, *_unrotated(report)]


def _unrotated(report: ExportReport) -> list[str]:
    if not report.unrotated:
        return []
    return [f"  {report.unrotated} layers read rotated inputs: multiplied out of their weights"]


def _packed(report: ExportReport, files: str) -> list[str]:
    """Lines about packed integers: their form, what stands decoded, and who runs them."""
    lines = [
        f"  {size(report.nbytes)} in {files}",
        f"  {report.packed} layers of {report.packed_as}: "
        f"{report.effective_bits:.4g} bits a weight in all",
    ]
    if report.decoded:
        lines.append(f"  {report.decoded} quantized layers outside the blocks: decoded")
    return [*lines, f"  {report.served_by}"]


def _print_proof(proof: Verification, dtype: str) -> None:
    rounded = "" if dtype == "f32" else f", rounded to {dtype}"
    if not proof.probes:
        print_lines(console(), f"  {proof.tensors} tensors equal the artifact's{rounded}")
        return
    print_lines(
        console(),
        f"  {proof.tensors} tensors equal the artifact's{rounded}",
        f"  logits in f32 equal those of the artifact's weights{rounded}",
    )
    rows = table("", "read by both", "tokens", "apart", "moved by rounding", right=(1, 2, 3))
    for probe in proof.probes:
        rows.add_row(
            probe.name, f"{probe.tokens:,}", f"{probe.difference:g}", f"{probe.rounding:.2g}"
        )
    print_table(console(), rows)
