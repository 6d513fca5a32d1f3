"""Cells of the table: how figures are written in the terminal, in Markdown and on the page."""

from qdc.comparing.table import CompareResult, MethodRow, RiseRow, Variation
from qdc.evaluation.bootstrap import Interval

MEGA = 1e6


def ratio_text(ratio: float | None) -> str:
    """What a loss is of."""
    return "next token" if ratio is None else f"{ratio:g}"


def interval_text(ends: Interval | None, form: str = "+.4f") -> str:
    """An interval; nothing where there is none."""
    return "" if ends is None else f"{ends[0]:{form}} .. {ends[1]:{form}}"


def head(compared: CompareResult) -> tuple[str, ...]:
    """The columns of the table of methods."""
    ratios = (f"rise at {ratio_text(r.ratio)}" for r in compared.original)
    if compared.ratio is None:
        ratios = ("rise of the next-token loss" for _ in compared.original)
    return (
        "method", "nominal bits", "code bits", "effective bits", "file, MB", *ratios,
        "KL", "same top token", "seconds", "processor s", "memory, MB",
    )  # fmt: skip


def cells(row: MethodRow, compared: CompareResult) -> tuple[str, ...]:
    """A row of it; without figures nothing but the name."""
    nominal = "" if row.nominal_bits is None else f"{row.nominal_bits:g}"
    if not row.rises:
        return (row.name, nominal, *("" for _ in range(8 + len(compared.original))))
    return (
        row.name,
        nominal,
        _number(row.code_bits, ".3f"),
        _number(row.effective_bits, ".3f"),
        _number(None if row.file_bytes is None else row.file_bytes / MEGA, ".3f"),
        *(rise_text(row.at(each.ratio)) for each in compared.original),
        _number(row.divergence, ".4f"),
        _number(row.top1, ".1%"),
        _number(row.seconds, ".1f"),
        _number(row.processor_seconds, ".1f"),
        _number(None if row.peak_bytes is None else row.peak_bytes / MEGA, ".0f"),
    )


def rise_text(row: RiseRow | None) -> str:
    """A rise, its interval, and its deviation over seeds."""
    if row is None:
        return ""
    text = f"{row.rise:+.4f}"
    if row.interval is not None:
        text += f" ({interval_text(row.interval)})"
    return text if row.deviation is None else f"{text} ± {row.deviation:.4f}"


VARIED = ("method", "values", "ratio", "rise, first", "rise, second", "difference", "95% interval",
          "± seeds")  # fmt: skip


def varied_cells(row: Variation) -> tuple[str, ...]:
    """A row of the table of one option."""
    others = " ".join(f"{key}={value}" for key, value in row.others.items())
    return (
        f"{row.method} {others}".rstrip(),
        f"{row.base} → {row.value}",
        ratio_text(row.ratio),
        f"{row.base_rise:+.4f}",
        f"{row.rise:+.4f}",
        f"{row.difference:+.4f}",
        interval_text(row.interval),
        _number(row.deviation, ".4f"),
    )


def notes(compared: CompareResult) -> tuple[str, ...]:
    """What stands below the table: how to read it, and what is not as it was asked for."""
    documents = compared.held_out_text
    lines = [
        "rise: of the loss of a token over the original, nats; in brackets 95%, documents resampled"
        + ("; ± over seeds" if any(r.deviation is not None for m in compared.rows for r in m.rises)
           else ""),
        "KL(original || method) and same top token: " + (
            "of the next token" if compared.ratio is None
            else f"at mask ratio {compared.ratio:g}"
        ),
        "code bits: signs or codes alone; effective bits: every stored byte of the layers; "
        "nominal bits: as the publication counts",
        "original: " + ", ".join(
            f"{row.loss:.4f} at {ratio_text(row.ratio)}" for row in compared.original
        ),
        f"held-out text: {compared.held_out.partition(' sha256:')[0]}",
        *(f"text: {line}" for line in (*documents.said, *documents.notes)),
        *(f"warning: {line}" for line in documents.warnings),
    ]  # fmt: skip
    if compared.held_out_left_out:
        lines.append(f"{compared.held_out_left_out} and are left out")
    lines += [f"{row.name}: {note}" for row in compared.rows for note in row.notes]
    lines += [f"{row.name} failed: {row.error}" for row in compared.failed]
    return tuple(lines)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"
