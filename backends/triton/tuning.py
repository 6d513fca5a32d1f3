"""Measured choices of kernels, kept on disk for each device; without them, the defaults."""

import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
import triton
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qdc.disk import LARGEST_JSON, read_regular
from qdc.jsontext import parse_json

from .variants import CANDIDATES, EXPAND, Choice, Variant, default_choice, may_split, split_for

FOLDER = "QDC_CACHE"
"""Environment variable: where choices are kept; ``off`` keeps and reads none."""
SIZES = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Rows of activations that are measured; a size between two takes the choice of the upper."""


class MeasuredChoice(BaseModel):
    """One measured choice."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variant: Variant
    split: int = Field(ge=1, le=64)
    microseconds: float = Field(gt=0)


class Tuning(BaseModel):
    """What was measured on one device."""

    model_config = ConfigDict(extra="forbid")

    device: str
    triton: str
    entries: dict[str, MeasuredChoice] = Field(default_factory=dict)


def key(tokens: int, padded_rows: int, columns: int, planes: int, dtype: torch.dtype) -> str:
    """The name of a shape, its tokens rounded up to a measured size."""
    size = next((size for size in SIZES if tokens <= size), SIZES[-1])
    return f"{size} x {padded_rows} x {columns}, {planes} planes, {str(dtype).split('.')[-1]}"


def choose(
    tokens: int, padded_rows: int, columns: int, planes: int, units: int, dtype: torch.dtype
) -> Choice:
    """The measured choice of this device, or the default one."""
    if dtype == torch.float32:
        return Choice(EXPAND)
    entries = _entries()
    entry = entries.get(key(tokens, padded_rows, columns, planes, dtype)) if entries else None
    # A file can name any variant; only those that tuning tries fit the layout.
    if entry is None or entry.variant not in CANDIDATES:
        return default_choice(tokens, padded_rows, units)
    # The entry of the largest size serves all above it, where there may be no places to count in.
    return Choice(entry.variant, entry.split if may_split(entry.variant, tokens) else 1)


def tune(
    run: Callable[[Choice], object],
    time: Callable[[Callable[[], object]], float],
    tokens: int,
    padded_rows: int,
    columns: int,
    planes: int,
    units: int,
    dtype: torch.dtype,
) -> MeasuredChoice:
    """Time every candidate on one shape, keep the fastest on disk, and return it.

    Args:
        run: runs the layer with a choice.
        time: gives the microseconds of a call.
        tokens: rows of activations.
        padded_rows: outputs, padded.
        columns: inputs.
        planes: sub-planes of the layer.
        units: pairs and singles.
        dtype: of activations.
    """
    best: MeasuredChoice | None = None
    for choice in _candidates(tokens, padded_rows, units):
        took = time(lambda choice=choice: run(choice))  # type: ignore[misc]
        if best is None or took < best.microseconds:
            best = MeasuredChoice(variant=choice.variant, split=choice.split, microseconds=took)
    assert best is not None
    path = _path()
    if path is not None:
        stored = _read(path)
        stored.entries[key(tokens, padded_rows, columns, planes, dtype)] = best
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_text(stored.model_dump_json(indent=1) + "\n", encoding="utf-8")
        scratch.replace(path)
    _entries.cache_clear()
    return best


def _candidates(tokens: int, padded_rows: int, units: int) -> Sequence[Choice]:
    found = []
    for variant in dict.fromkeys(CANDIDATES):
        if variant.family == "expand":
            found.append(Choice(variant))
        elif variant.tokens <= 2 * tokens or variant.tokens == 16:
            split = split_for(variant, tokens, padded_rows, units)
            splits = {1}
            if may_split(variant, tokens):
                splits |= {max(1, split // 2), split, min(16, 2 * split)}
            found += [Choice(variant, s) for s in sorted(splits) if s <= max(1, units)]
    return found


@cache
def _entries() -> dict[str, MeasuredChoice]:
    path = _path()
    return {} if path is None else _read(path).entries


def _path() -> Path | None:
    """Where the choices of this device are; None without a device, or if switched off."""
    if os.environ.get(FOLDER) == "off" or not torch.cuda.is_available():
        return None
    home = os.environ.get(FOLDER) or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "qdc"
    )
    name = "".join(c if c.isalnum() else "-" for c in torch.cuda.get_device_name())
    return Path(home, f"kernels-{name}-triton-{triton.__version__}.json")


def _read(path: Path) -> Tuning:
    """What the file holds; a damaged one, or one of another device, holds nothing."""
    empty = Tuning(device=path.stem, triton=triton.__version__)
    try:
        found = Tuning.model_validate(parse_json(read_regular(path, LARGEST_JSON)))
    except (OSError, ValueError, ValidationError):
        return empty
    return found if (found.device, found.triton) == (empty.device, empty.triton) else empty
