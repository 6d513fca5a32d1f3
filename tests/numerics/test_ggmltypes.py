"""Blocks of ggml: bytes to fields and back, and the numbers that ggml itself makes of them."""

import ctypes
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qdc.numerics.ggmltypes import TYPES, BlockType, Fields, decode
from tests.support.ggufs import example, needs_engine, needs_gguf

KINDS = list(TYPES.values())
by_name = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
NOT_IN_PACKAGE = ("Q1_0", "Q2_0")
"""Types that version 0.19 of the package gguf cannot decode."""


def random_blocks(kind: BlockType, rows: int, blocks: int, seed: int) -> Tensor:
    """Every byte at random, but for the fp16 numbers, which are finite."""
    generator = torch.Generator().manual_seed(seed)
    size = (rows, blocks, kind.nbytes)
    found = kind.unpack(torch.randint(0, 256, size, dtype=torch.uint8, generator=generator))
    halves = torch.randn(2, rows, blocks, generator=generator).half().float()
    dmin = None if found.dmin is None else halves[1]
    return kind.pack(found._replace(d=halves[0], dmin=dmin))


@by_name
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_fields_are_the_bytes(kind: BlockType, rows: int, blocks: int, seed: int) -> None:
    raw = random_blocks(kind, rows, blocks, seed)
    fields = kind.unpack(raw)
    assert raw.shape == (rows, blocks, kind.nbytes)
    assert torch.equal(kind.pack(fields), raw)
    assert decode(fields).shape == (rows, blocks * kind.width)
    lowest, highest = kind.codes
    assert lowest <= int(fields.codes.min())
    assert int(fields.codes.max()) <= highest


@by_name
def test_joined_blocks_stand_side_by_side(kind: BlockType) -> None:
    raw = random_blocks(kind, 2, 3, 0)
    parts = [kind.unpack(raw[:, place : place + 1]) for place in range(3)]
    assert torch.equal(kind.pack(Fields.joined(parts)), raw)


@needs_gguf
@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind.name not in NOT_IN_PACKAGE], ids=lambda k: k.name
)
def test_numbers_are_those_of_the_package_gguf(kind: BlockType) -> None:
    import gguf

    raw = random_blocks(kind, 7, 3, 1)
    number = gguf.GGMLQuantizationType[kind.name]
    assert number == kind.number
    assert gguf.GGML_QUANT_SIZES[number] == (kind.width, kind.nbytes)
    expected = gguf.quants.dequantize(raw.flatten(1).numpy(), number)
    assert np.array_equal(decode(kind.unpack(raw)).numpy(), expected)


@needs_engine
@by_name
def test_numbers_are_those_of_ggml(kind: BlockType) -> None:
    engine: Any = example("llamacpp").library()
    raw = random_blocks(kind, 7, 3, 2)
    assert engine.ggml_blck_size(kind.number) == kind.width
    name = kind.name.lower().replace("_k", "_K")
    data, found = raw.numpy().copy(), np.zeros(7 * 3 * kind.width, np.float32)
    getattr(engine, f"dequantize_row_{name}")(
        data.ctypes.data_as(ctypes.c_void_p),
        found.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(found.size),
    )
    assert np.array_equal(decode(kind.unpack(raw)).flatten().numpy(), found)
