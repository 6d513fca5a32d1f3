"""Made-up comparisons: many methods at once, which no test could compile."""

import random

from qdc.comparing.table import CompareResult, LossRow, MethodRow, RiseRow, Variation
from qdc.ir.text_use import TextUse

RATIOS = (0.15, 0.5, 0.85)
KINDS = ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out")
USE = TextUse(
    pack="documents", judged=True, documents=40, characters=9000, tokens=2000, counted=True,
    used=17, windows=8, length=64, distinct=8,
)  # fmt: skip


def method_row(name: str, level: float, bits: float, **given: object) -> MethodRow:
    """A method whose loss rises by ``level`` at ratio 0.5."""
    draw = random.Random(name)
    rises = tuple(
        RiseRow(
            ratio=ratio, rise=level * 2 * ratio, standard_error=level / 10,
            interval=(level * 1.8 * ratio, level * 2.3 * ratio), deviation=level / 20,
            by_seed=(level * 1.9 * ratio, level * 2.1 * ratio),
        )
        for ratio in RATIOS
    )  # fmt: skip
    errors = {
        f"blocks.{depth}.{kind}": level * draw.uniform(0.2, 2)
        for depth in range(6)
        for kind in KINDS
    }
    fields: dict[str, object] = {
        "name": name, "method": name, "settings": {}, "pipeline": name, "source": "",
        "nominal_bits": 2, "seeds": (0, 1), "results": ("a.json", "b.json"), "code_bits": 2,
        "effective_bits": bits, "file_bytes": 1_500_000, "rises": rises, "top1": 0.9,
        "top1_interval": (0.88, 0.92), "divergence": level, "divergence_interval": (level, level),
        "seconds": 12.3, "processor_seconds": 10.1, "peak_bytes": 600_000_000,
        "layer_errors": errors,
    }  # fmt: skip
    return MethodRow.model_validate(fields | given)


def failed_row(name: str, error: str) -> MethodRow:
    """A method without figures."""
    return MethodRow(
        name=name,
        method=name,
        settings={},
        pipeline=name,
        source="",
        nominal_bits=None,
        error=error,
    )


def comparison(*rows: MethodRow, **given: object) -> CompareResult:
    """These methods, side by side."""
    original = tuple(
        LossRow(ratio=ratio, loss=2 + ratio, interval=(2.0, 3.0), tokens=1000) for ratio in RATIOS
    )
    fields: dict[str, object] = {
        "created": "2026-01-02T03:04:05+00:00", "qdc": "1", "tag": "", "model": "models/tiny",
        "model_sha256": "0" * 64, "held_out": "held.jsonl sha256:" + "1" * 64,
        "held_out_left_out": "", "held_out_text": USE, "calibration": "embedded sha256:2",
        "seeds": (0, 1), "masks": 2, "device": "cpu", "ratio": 0.5, "original": original,
        "rows": rows,
    }  # fmt: skip
    return CompareResult.model_validate(fields | given)


def variation(method: str, difference: float, ratio: float = 0.5) -> Variation:
    """What masks change for a method."""
    return Variation(
        option="geometry", method=method, others={}, base="clean", value="mcs", ratio=ratio,
        base_rise=0.2, rise=0.2 + difference, difference=difference, standard_error=0.01,
        interval=(difference - 0.02, difference + 0.02), deviation=0.003,
    )  # fmt: skip
