"""What is measured: the shapes of published models, or toys for a dry run."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A linear, or the linears of a stage as one."""

    model: str
    layer: str
    rows: tuple[int, ...]
    """Of each joined linear."""
    columns: int
    codec: str = "multi-binary"


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
    region: dict[str, int]
    """Width, hidden width and vocabulary of the region that is compiled."""
    samples: int
    length: int
    passes: str
    """Pipeline of that compile."""
    floating: str
    """Dtype of activations."""


def _config(width: int, hidden: int, layers: int, heads: int, vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["LLaDAModelLM"],
        "d_model": width,
        "n_layers": layers,
        "n_heads": heads,
        "mlp_hidden_size": hidden,
        "vocab_size": vocabulary,
        "embedding_size": vocabulary,
        "max_sequence_length": 4096,
        "rope_theta": 500000.0,
        "mask_token_id": 1,
    }


def _shapes(model: str, width: int, keys: int, hidden: int, vocabulary: int) -> tuple[Shape, ...]:
    """The linears of a model, alone and as the stages that they form."""
    return (
        Shape(model, "q/k/v", (width, keys, keys), width),
        Shape(model, "q or attention out", (width,), width),
        *([Shape(model, "k or v", (keys,), width)] if keys != width else []),
        Shape(model, "gate/up", (hidden, hidden), width),
        Shape(model, "gate or up", (hidden,), width),
        Shape(model, "down", (width,), hidden),
        Shape(model, "head", (vocabulary,), width, "uniform"),
    )


FULL = Sizes(
    shapes=(
        *_shapes("LLaDA-8B", 4096, 4096, 12288, 126464),
        *_shapes("Dream-7B", 3584, 512, 18944, 152064),
    ),
    tokens=(1, 4, 16, 32, 64, 128, 256, 1024, 4096),
    tuned=(1, 4, 16, 32, 64, 128, 256),
    steps=((1, 32), (1, 256), (1, 1024), (8, 1024)),
    config=_config(4096, 12288, 32, 32, 126464),
    copy_bytes=1 << 30,
    product_side=8192,
    region={"width": 4096, "hidden": 12288, "vocabulary": 8192},
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
    ),
    tokens=(1, 3, 80),
    tuned=(3,),
    steps=((2, 3),),
    config=_config(32, 48, 1, 2, 64),
    copy_bytes=1 << 12,
    product_side=16,
    region={"width": 128, "hidden": 128, "vocabulary": 2048},
    samples=2,
    length=8,
    passes="stages(calibrate-mcs,sensitivity,abmp-allocate{ratio=0},daq-lower{sweeps=1}),pack",
    floating="bfloat16",
)
