"""The least time that a linear can take on an H100, by what must be moved and calculated.

``python -m bench.floors`` prints the tables of docs/kernels.md. Peaks are NVIDIA's published ones
for H100 SXM5; nothing here is a measurement.
"""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Shape:
    """A linear, or a stage as one."""

    name: str
    rows: int
    columns: int
    vocabulary: bool = False

    @property
    def weights(self) -> int:
        """Of all rows."""
        return self.rows * self.columns

    @property
    def packed_bytes(self) -> float:
        """Planes and scales of order 2, or 8-bit codes."""
        if self.vocabulary:
            return self.weights + 6 * self.rows
        planes = SIGN_BITS * self.columns / 128
        return self.weights * SIGN_BITS / 8 + planes * (2 * self.rows + 2 * 128)


SHAPES = (
    Shape("LLaDA q/k/v joined", 3 * 4096, 4096),
    Shape("LLaDA attention out", 4096, 4096),
    Shape("LLaDA gate/up joined", 2 * 12288, 4096),
    Shape("LLaDA down", 4096, 12288),
    Shape("LLaDA head, 8 bits", 126464, 4096, vocabulary=True),
    Shape("Dream q/k/v joined", 3584 + 2 * 512, 3584),
    Shape("Dream attention out", 3584, 3584),
    Shape("Dream gate/up joined", 2 * 18944, 3584),
    Shape("Dream down", 3584, 18944),
)


def microseconds(shape: Shape, tokens: int) -> dict[str, float]:
    """Floors of one shape: of bf16, and of the packed form by each resource."""
    activations = 2 * tokens * (shape.columns + shape.rows)
    products = 2 * tokens * shape.weights / FLOPS
    signs = 0 if shape.vocabulary else SIGN_BITS * shape.weights
    rate, tile = next(((r, t) for t, r in PER_SIGN if tokens <= t), (EXPANDED, tokens))
    repeats = -(-tokens // min(tile, 128))
    planes = SIGN_BITS if tokens <= 16 and not shape.vocabulary else 1
    found = {
        "bf16": max((2 * shape.weights + activations) / BYTES_PER_SECOND, products),
        "bytes": (shape.packed_bytes + activations) / BYTES_PER_SECOND,
        "products": products * planes,
        "integers": signs / INTEGERS,
        "issue": signs * rate * (1 if rate == EXPANDED else repeats) / ISSUES,
    }
    return {name: 1e6 * seconds for name, seconds in found.items()}


def table(shape: Shape) -> str:
    """Markdown rows of one shape."""
    rows = []
    for tokens in TOKENS:
        floor = microseconds(shape, tokens)
        packed = {k: v for k, v in floor.items() if k != "bf16"}
        binds = max(packed, key=lambda name: packed[name])
        # Expansion and product are two launches, one behind the other.
        behind = floor["issue"] + floor["products"] if tokens > 255 else 0.0
        least = max(behind, *packed.values())
        rows.append(
            f"| {shape.name} | {tokens} | {floor['bf16']:.1f} | {floor['bytes']:.1f} "
            f"| {floor['products']:.1f} | {floor['integers']:.1f} | {floor['issue']:.1f} "
            f"| {binds} | {floor['bf16'] / least:.2f} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Print the table of all shapes."""
    print("| linear | M | bf16 | bytes | products | integers | issue | binds | bf16 / packed |")
    print("|---|---|---|---|---|---|---|---|---|")
    print("\n".join(table(shape) for shape in SHAPES))


if __name__ == "__main__":
    main()
