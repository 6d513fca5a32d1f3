"""The least time that a linear can take on an H100, by what must be moved and calculated.

``python -m bench.floors`` prints the tables of docs/kernels.md. Peaks are NVIDIA's published ones
for H100 SXM5; nothing here is a measurement.
"""

from collections.abc import Iterator

from bench.common.markdown import table
from bench.common.shapes import DREAM, LLADA, Shape, linears
from bench.gpu.weights import codec_of

BYTES_PER_SECOND = 3.35e12
CLOCK = 1.83e9
"""Cycles a second at which 132 multiprocessors make the published 989 TFLOPS of dense bf16."""
MULTIPROCESSORS = 132
FLOPS = 989e12
INTEGERS = MULTIPROCESSORS * 64 * CLOCK
"""Logic operations and shifts a second."""
ISSUES = MULTIPROCESSORS * 128 * CLOCK
"""Instructions of threads a second."""
TOKENS = (1, 16, 64, 256, 1024, 4096)
SIGN_BITS = 2
PER_SIGN = ((16, 1.85), (32, 2.41), (64, 4.33), (255, 6.50))
"""Instructions that the compiled loops of the default variants take for a sign on sm_90, up to so
many rows of activations: ``python -m qdc.backends.triton.ahead``. More rows are expanded once."""
EXPANDED = 6.12
"""The same of the expansion's loop over planes; what it stores comes on top."""
COLUMNS = (
    "linear", "M", "bf16", "bytes", "products", "integers", "issue", "binds", "bf16 / packed",
)  # fmt: skip


def microseconds(shape: Shape, tokens: int) -> dict[str, float]:
    """Floors of one shape: of bf16, and of the packed form by each resource."""
    weights, planar = sum(shape.rows) * shape.columns, shape.codec == "multi-binary"
    stored = sum(codec_of(shape.codec, rows, shape.columns).nbytes for rows in shape.rows)
    activations = 2 * tokens * (shape.columns + sum(shape.rows))
    products = 2 * tokens * weights / FLOPS
    signs = SIGN_BITS * weights if planar else 0
    rate, tile = next(((r, t) for t, r in PER_SIGN if tokens <= t), (EXPANDED, tokens))
    repeats = -(-tokens // min(tile, 128))
    planes = SIGN_BITS if tokens <= 16 and planar else 1
    found = {
        "bf16": max((2 * weights + activations) / BYTES_PER_SECOND, products),
        "bytes": (stored + activations) / BYTES_PER_SECOND,
        "products": products * planes,
        "integers": signs / INTEGERS,
        "issue": signs * rate * (1 if rate == EXPANDED else repeats) / ISSUES,
    }
    return {name: 1e6 * seconds for name, seconds in found.items()}


def rows(shape: Shape) -> Iterator[tuple[object, ...]]:
    """Rows of the table of one shape."""
    for tokens in TOKENS:
        floor = microseconds(shape, tokens)
        packed = {k: v for k, v in floor.items() if k != "bf16"}
        binds = max(packed, key=lambda name: packed[name])
        # Expansion and product are two launches, one behind the other.
        behind = floor["issue"] + floor["products"] if tokens > 255 else 0.0
        least = max(behind, *packed.values())
        yield (
            f"{shape.model} {shape.layer}", tokens, *(f"{value:.1f}" for value in floor.values()),
            binds, f"{floor['bf16'] / least:.2f}",
        )  # fmt: skip


def main() -> None:
    """Print the table of all shapes."""
    shapes = (*linears(LLADA), *linears(DREAM))
    print(table(COLUMNS, (row for shape in shapes for row in rows(shape))))


if __name__ == "__main__":
    main()
