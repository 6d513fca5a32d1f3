"""Which kernels are compiled ahead of time, and with which constants."""

from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ConfigDict

from qdc.numerics.trellis import EIGHTHS

from .expanding import EXPAND_ROWS, RING_ROWS
from .rings import window_group
from .rotation import run_of
from .variants import DEFAULTS, RING_COLUMNS, TRELLIS, UNIFORM, Variant

RATES = (16, 32)
"""Eighths of a bit of the rings that are compiled: registers hold eight windows, and four."""
ROTATED = 4096
"""Numbers of the transform that is compiled."""


class Form(BaseModel):
    """A kernel and the constants that it is compiled with."""

    model_config = ConfigDict(frozen=True)

    name: str
    kernel: str
    constants: dict[str, int | bool]
    warps: int
    stages: int
    dtype: str = "bf16"
    signs: int = 0
    """Signs that a program expands in one round of its loop; 0 if it does not work on signs."""


def forms(dtypes: Sequence[str] = ("bf16",), width: int = 128) -> Iterator[Form]:
    """Every kernel that the tables choose, some of them with split-K."""
    for dtype in dtypes:
        for number, (_, variant) in enumerate(DEFAULTS):
            split = 4 if number % 2 == 0 else 1
            yield binary_form(variant, dtype, width, split)
        for _, variant in UNIFORM:
            yield _uniform_form(variant, dtype, width)
        yield Form(
            name="binary-expand",
            kernel="binary_expand",
            constants={"ROWS": EXPAND_ROWS, "WIDTH": width},
            warps=4,
            stages=3,
            dtype=dtype,
            signs=EXPAND_ROWS * width,
        )
        yield Form(
            name="uniform-expand-8",
            kernel="uniform_expand",
            constants={"ROWS": EXPAND_ROWS, "WIDTH": width, "BITS": 8},
            warps=4,
            stages=3,
            dtype=dtype,
        )
        yield Form(
            name="uniform-embedding-8",
            kernel="uniform_embedding",
            constants={"WIDTH": width, "BITS": 8},
            warps=4,
            stages=3,
            dtype=dtype,
        )
    # These put no bits into numbers: dtypes differ in their conversions and products alone.
    yield from _trellis_forms(dtypes[0])
    yield from (_rotation_form(before, dtypes[0]) for before in (True, False))


def binary_form(variant: Variant, dtype: str, width: int, split: int) -> Form:
    """The kernel of multi-binary linears in one variant."""
    name = f"binary-{variant.name}" + (f"-k{split}" if split > 1 else "")
    constants = {
        "WIDTH": width,
        "ADD_FIRST": variant.family == "tile",
        "SPLIT": split,
        "HAS_BIAS": False,
    }
    signs = 2 * variant.rows * width
    return _linear_form(name, "binary_linear", variant, dtype, constants, signs)


def _uniform_form(variant: Variant, dtype: str, width: int) -> Form:
    name = f"uniform-8-{variant.rows}x{variant.tokens}-w{variant.warps}-s{variant.stages}"
    constants = {"WIDTH": width, "BITS": 8, "HAS_BIAS": False}
    return _linear_form(name, "uniform_linear", variant, dtype, constants)


def _linear_form(
    name: str,
    kernel: str,
    variant: Variant,
    dtype: str,
    constants: dict[str, int | bool],
    signs: int = 0,
) -> Form:
    """A linear in one variant, of whole tiles, with what its codec wants beside."""
    return Form(
        name=name,
        kernel=kernel,
        constants={
            "ROWS": variant.rows,
            "TOKENS": variant.tokens,
            **constants,
            "RAGGED": False,
            "PTX": True,
        },
        warps=variant.warps,
        stages=variant.stages,
        dtype=dtype,
        signs=signs,
    )


def _trellis_forms(dtype: str) -> Iterator[Form]:
    shape = {"WIDTH": RING_COLUMNS, "SPAN": 1, "WINDOW": 10}
    groups = {rate: window_group(1, rate, shape["WINDOW"]) for rate in RATES}
    for number, (_, variant) in enumerate(TRELLIS):
        for rate in RATES if number == 0 else RATES[:1]:
            name = f"trellis-{rate // EIGHTHS}-{variant.name}"
            constants = {**shape, "RATE": rate, "GROUP": groups[rate], "SPLIT": 4}
            yield _linear_form(name, "trellis_linear", variant, dtype, constants)
    yield Form(
        name=f"trellis-expand-{RATES[0] // EIGHTHS}",
        kernel="trellis_expand",
        constants={"ROWS": RING_ROWS, **shape, "RATE": RATES[0], "GROUP": groups[RATES[0]]},
        warps=4,
        stages=3,
        dtype=dtype,
    )


def _rotation_form(before: bool, dtype: str) -> Form:
    run, warps = run_of(ROTATED)
    return Form(
        name=f"rotate-{'inputs' if before else 'outputs'}-{ROTATED}",
        kernel="rotate",
        constants={
            "RUN": run,
            "STAGES": ROTATED.bit_length() - 1,
            "PARTS": 1 if before else 4,
            "BEFORE": before,
            "HAS_BIAS": False,
        },
        warps=warps,
        stages=3,
        dtype=dtype,
    )
