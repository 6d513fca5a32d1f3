"""What is measured: the shapes of published models, or toys for a dry run."""

from dataclasses import dataclass
from typing import Any

from bench.common.checkpoint import configuration
from bench.common.shapes import DREAM, LLADA, Shape, linears, on_rings


@dataclass(frozen=True)
class Sizes:
    """Everything that differs between a measurement and a dry run."""

    shapes: tuple[Shape, ...]
    tokens: tuple[int, ...]
    """Rows of the input: M."""
    tuned: tuple[int, ...]
    """Those of them for which kernels are chosen by measuring."""
    steps: tuple[tuple[int, int], ...]
    """Batch and length of denoising steps."""
    config: dict[str, Any]
    """``config.json`` of the whole model."""
    copy_bytes: int
    product_side: int
    region: dict[str, Any]
    """Width, hidden width and vocabulary of the region that is compiled."""
    samples: int
    length: int
    passes: str
    """Pipeline of that compile."""
    floating: str
    """Dtype of activations."""


FULL = Sizes(
    shapes=(*linears(LLADA), *linears(DREAM), *on_rings(LLADA)),
    tokens=(1, 4, 16, 32, 64, 128, 256, 1024, 4096),
    tuned=(1, 4, 16, 32, 64, 128, 256),
    steps=((1, 32), (1, 256), (1, 1024), (8, 1024)),
    config=configuration(
        regions=32, width=LLADA.width, hidden=LLADA.hidden, vocabulary=LLADA.vocabulary
    ),
    copy_bytes=1 << 30,
    product_side=8192,
    region={"width": LLADA.width, "hidden": LLADA.hidden, "vocabulary": 8192},
    samples=128,
    length=4096,
    passes="default",
    floating="bfloat16",
)
DRY = Sizes(
    shapes=(
        Shape("toy", "q/k/v", (32, 16, 16), 160),
        Shape("toy", "down", (32,), 256),
        Shape("toy", "head", (64,), 32, "uniform"),
        Shape("toy", "down, trellis", (32,), 64, "trellis"),
    ),
    tokens=(1, 3, 80),
    tuned=(3,),
    steps=((2, 3),),
    config=configuration(regions=1, width=32, hidden=48, vocabulary=64, heads=2),
    copy_bytes=1 << 12,
    product_side=16,
    region={"width": 128, "hidden": 128, "vocabulary": 2048},
    samples=2,
    length=8,
    passes="stages(calibrate-mcs,sensitivity,abmp-allocate{ratio=0},daq-lower{sweeps=1}),pack",
    floating="bfloat16",
)
