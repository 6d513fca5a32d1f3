"""Tiny artifacts as the packed backend meets them: planes of orders 1 to 3, codes of 8 bits."""

from pathlib import Path

from tests.support.compiles import compile_tiny

MIXED = (
    "quantize-vocab,stages(calibrate-mcs,sensitivity{damp=0.1 block=32},"
    "abmp-allocate{ratio=0.4},daq-lower{sweeps=2}),pack"
)
"""Short, and with orders that differ between blocks."""


def packed_artifact(
    model: Path, out: Path, passes: str = MIXED, backend: str = "reference"
) -> Path:
    """Compile a tiny checkpoint and return the artifact's folder."""
    compile_tiny(model, out, passes, backend=backend)
    return out
