"""The additive codec: exact round trips, predicted bytes, hostile fields and codes, polish."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from qdc.errors import InvalidArtifact
from qdc.format.additive import AdditiveCodebooks, CodeBits
from qdc.format.multibinary import MultiBinary
from qdc.format.relaxation import TrainableKind
from qdc.numerics.additive import Additive
from qdc.numerics.components import Components
from tests.support.units import noise


@st.composite
def codecs(draw: st.DrawFn) -> AdditiveCodebooks:
    widths: list[CodeBits] = [1, 2, 4, 8, 16]
    bits = draw(st.sampled_from(widths))
    return AdditiveCodebooks(
        rows=draw(st.integers(1, 6)),
        columns=draw(st.integers(1, 40)),
        group=draw(st.integers(1, 9)),
        codebooks=draw(st.integers(1, 3)),
        bits=bits,
        entries=draw(st.integers(1, min(1 << bits, 700))),
    )


def working(codec: AdditiveCodebooks, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(
        codec.entries, (codec.rows, codec.codebooks, codec.groups), generator=generator
    )
    table = torch.randn(codec.codebooks, codec.entries, codec.group, generator=generator)
    state = Additive(codes, table, torch.rand(codec.rows, generator=generator))
    return AdditiveCodebooks.working(state, codec.bits)


@given(codecs(), st.integers(0, 99))
def test_packs_exactly(codec: AdditiveCodebooks, seed: int) -> None:
    given_tensors = working(codec, seed)
    stored = codec.pack_exactly(given_tensors, "layer")
    again = codec.unpack(stored)
    assert again.keys() == given_tensors.keys()
    for name, tensor in given_tensors.items():
        assert torch.equal(again[name], tensor)
        assert again[name].dtype == tensor.dtype
    assert codec.working_bytes == sum(tensor.nbytes for tensor in given_tensors.values())
    padding = 8 * stored["codes"].numel() - codec.payload_bits
    assert 0 <= padding < 8 * codec.rows * codec.codebooks
    assert 8 * codec.nbytes == (
        codec.payload_bits + padding + codec.codebook_bits + 16 * codec.rows
    )


@given(codecs())
def test_the_weight_is_what_the_format_says(codec: AdditiveCodebooks) -> None:
    tensors = working(codec)
    codes, table = tensors["codes"].long(), tensors["codebook"].float()
    expected = torch.zeros(codec.rows, codec.groups * codec.group)
    for row in range(codec.rows):
        for at in range(codec.groups):
            total = table[0, codes[row, 0, at]]
            for book in range(1, codec.codebooks):
                total = total + table[book, codes[row, book, at]]
            place = slice(at * codec.group, (at + 1) * codec.group)
            expected[row, place] = total * tensors["row_scale"][row].float()
    assert torch.equal(codec.dense(tensors), expected[:, : codec.columns])


def test_bits_of_the_published_formats() -> None:
    """Section 8 of the specification: M B / g + M 2^B g 16 / (n m) + 16 / m."""
    for books, bits, shape, extra in (
        (1, 16, (4096, 4096), 0.5),
        (1, 16, (4096, 12288), 0.1667),
        (2, 8, (4096, 4096), 0.0039),
        (2, 8, (256, 256), 1.0),
    ):
        codec = AdditiveCodebooks.sized(*shape, 8, books, bits)  # type: ignore[arg-type]
        weights = shape[0] * shape[1]
        assert codec.payload_bits == 2 * weights
        assert codec.codebook_bits / weights == pytest.approx(extra, abs=1e-4)
        assert 8 * codec.nbytes / weights == pytest.approx(2 + extra + 16 / shape[1], abs=1e-4)
    small = AdditiveCodebooks.sized(256, 256, 8, 2, 8)
    assert small.text() == "2 codebooks of 256 x 8   2 bits + 1 of codebooks"


def test_a_codebook_has_no_more_entries_than_the_layer_has_vectors() -> None:
    assert AdditiveCodebooks.sized(4, 20, 8, 2, 8).entries == 12
    assert AdditiveCodebooks.sized(64, 64, 8, 2, 8).entries == 256


def test_one_bit_for_single_weights_is_multi_binary() -> None:
    """Codebooks of -c and c for single weights are planes of signs with one scale each."""
    orders, columns = 3, 16
    signs = torch.randint(2, (orders, 1, columns), generator=torch.Generator().manual_seed(1))
    sizes = torch.tensor([1.0, 0.375, 0.0625])
    planes = Components(
        (2 * signs - 1).to(torch.int8), 0.5 * sizes[:, None], torch.ones(orders, columns)
    )
    binary = MultiBinary(rows=1, columns=columns, block=columns, orders=(orders,))
    codec = AdditiveCodebooks(rows=1, columns=columns, group=1, codebooks=orders, bits=1, entries=2)
    table = torch.stack([-sizes, sizes], dim=1)[..., None]
    state = Additive(signs.transpose(0, 1), table, torch.tensor([0.5]))
    tensors = AdditiveCodebooks.working(state, 1)
    assert torch.equal(codec.dense(tensors), binary.dense(MultiBinary.working([planes], columns)))
    assert codec.payload_bits == binary.payload_bits
    assert torch.equal(codec.pack(tensors)["codes"].flatten(1), signs_bytes(signs))


def signs_bytes(signs: Tensor) -> Tensor:
    """Sixteen signs of each plane as two bytes, the first in the lowest bit; [1, planes * 2]."""
    parts = signs.reshape(len(signs), 2, 8) * 2 ** torch.arange(8)
    return parts.sum(-1).to(torch.uint8).reshape(1, -1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bits": 3},
        {"group": 0},
        {"group": 65},
        {"codebooks": 17},
        {"entries": 17, "bits": 4},
        {"entries": 0},
        {"entries": 1 << 20, "bits": 16},
        {"rows": 1 << 30},
        {"columns": 0},
    ],
)
def test_fields_that_no_artifact_may_have(wrong: dict[str, Any]) -> None:
    good = {"rows": 4, "columns": 16, "group": 8, "codebooks": 2, "bits": 8, "entries": 9}
    AdditiveCodebooks.model_validate(good)
    with pytest.raises(ValidationError):
        AdditiveCodebooks.model_validate(good | wrong)


@pytest.mark.parametrize(("bits", "entries"), [(8, 9), (16, 700), (4, 5)])
def test_codes_beyond_the_entries_are_refused(bits: Any, entries: int) -> None:
    codec = AdditiveCodebooks(rows=4, columns=16, group=8, codebooks=2, bits=bits, entries=entries)
    tensors = working(codec)
    tensors["codes"][3, 1, 1] = entries
    stored = codec.pack(tensors)
    with pytest.raises(InvalidArtifact, match=f"a code is {entries}"):
        codec.check(stored, "layer")
    stored["codebook"] = stored["codebook"][:, 1:]
    with pytest.raises(InvalidArtifact, match="codebook is"):
        codec.check(stored, "layer")


def test_gradients_move_codebooks_and_scales_and_leave_codes() -> None:
    codec = AdditiveCodebooks(rows=6, columns=20, group=8, codebooks=2, bits=8, entries=12)
    weight, tensors = noise(6, 20), working(codec)
    layer = codec.relax(tensors, weight)
    assert torch.equal(layer.dense(), codec.dense(tensors))
    again = layer.working()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert all(again[name].dtype == tensors[name].dtype for name in tensors)
    assert [kind for kind, _, _ in layer.trainable()] == [TrainableKind.SCALE] * 2
    groups = [{"params": [t], "lr": 0.01 * size} for _, t, size in layer.trainable()]
    optimizer = torch.optim.Adam(groups)
    before = float((codec.dense(tensors) - weight).square().mean())
    for _ in range(100):
        optimizer.zero_grad()
        torch.autograd.backward((layer.dense() - weight).square().mean())
        optimizer.step()
    moved = layer.working()
    assert torch.equal(moved["codes"], tensors["codes"])
    assert float((codec.dense(moved) - weight).square().mean()) < 0.7 * before
    codec.pack_exactly(moved, "layer")
    with torch.no_grad():
        layer.scale[0] = -1
    assert layer.working()["row_scale"][0] == 0
    with torch.no_grad():
        layer.codebook[0, 0, 0] = 1e6
    with pytest.raises(OverflowError, match="fp16"):
        layer.working()
