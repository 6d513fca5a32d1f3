"""pack: what is stored, and the proof that nothing was lost."""

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from qdc.errors import InvalidArtifact, InvalidGraph, MissingAnnotation
from qdc.format.codec import Tensors
from qdc.format.multibinary import MultiBinary
from qdc.ir.annotations import Packed
from qdc.ir.tensors import digest
from qdc.ir.types import ValueType
from qdc.ir.verify import verify
from qdc.numerics.components import Components, dense
from qdc.passes.daq_lower import Daq
from qdc.passes.pack import Pack
from qdc.streaming.unit import Unit
from tests.support.units import make_unit

ROWS, COLUMNS, ORDERS = 4, 160, (1, 2)


def components(order: int, width: int) -> Components:
    """Signs in stripes, scales that are powers of two."""
    places = torch.arange(order * ROWS * width).reshape(order, ROWS, width)
    signs = torch.where(places % 3 == 0, 1, -1).to(torch.int8)
    rows = torch.full((order, ROWS), 0.5) * torch.tensor([1.0, 0.25])[:order, None]
    return Components(signs, rows, torch.ones(order, width))


def lowered(codec: MultiBinary | None = None) -> tuple[Unit, Tensor]:
    """A layer in working form, and its dense weight."""
    blocks = [components(1, 128), components(2, 32)]
    unit = make_unit(Pack(), {"h0.q": torch.zeros(ROWS, COLUMNS)})
    tensors = MultiBinary.working(blocks, 128)
    (node,) = unit.layers()
    unit.annotate(
        node,
        Daq(
            codec=codec or MultiBinary(rows=ROWS, columns=COLUMNS, block=128, orders=ORDERS),
            tensors=tuple(unit.put(f"h0.q:{s}", t) for s, t in tensors.items()),
            suffixes=tuple(tensors),
            outliers=0.025,
            sweeps=3,
        ),
    )
    return unit, torch.cat([dense(block) for block in blocks], dim=1)


def test_replaces_the_working_form() -> None:
    unit, weight = lowered()
    unit.step.run(unit)
    verify(unit.graph, unit.tensors, after="pack")
    note = unit.graph.require("h0.q", Packed)
    stored = dict(unit.tensors.held())
    assert set(stored) == {f"model.h0.q.{s}" for s in note.suffixes}, "the working form is gone"
    assert {ref.name: ref.digest for ref in note.tensors} == {
        name: digest(tensor) for name, tensor in stored.items()
    }
    codec = unit.graph.require("h0.q", Daq).codec
    short = {name.removeprefix("model.h0.q."): tensor for name, tensor in stored.items()}
    assert torch.equal(codec.dense(codec.unpack(short)), weight)


def test_sign_bits_and_effective_bits_differ_by_scales_and_padding() -> None:
    unit, _ = lowered()
    unit.step.run(unit)
    note = unit.graph.require("h0.q", Packed)
    assert note.payload_bits == ROWS * (128 * 1 + 32 * 2)
    assert note.sign_bits == 1.2
    planes, row_scale, col_scale, tags = ROWS * 3 * 16, ROWS * 3 * 2, 3 * 128 * 2, 2
    assert note.nbytes == planes + row_scale + col_scale + tags
    assert note.effective_bits == 8 * note.nbytes / (ROWS * COLUMNS)


class Lossy(MultiBinary):
    """Drops the row scales when it unpacks."""

    name: ClassVar[str] = "lossy"

    def unpack(self, stored: Tensors) -> dict[str, Tensor]:
        found = super().unpack(stored)
        return {**found, "row_scale": torch.ones_like(found["row_scale"])}


class Boastful(MultiBinary):
    """Predicts fewer bytes than it packs."""

    name: ClassVar[str] = "boastful"

    @property
    def nbytes(self) -> int:
        return 1


class Vague(MultiBinary):
    """Specifies another tensor than it packs."""

    name: ClassVar[str] = "vague"

    def specification(self) -> dict[str, ValueType]:
        found = super().specification()
        return {**found, "more": found["orders"]}


@pytest.mark.parametrize(
    ("kind", "error", "what"),
    [
        (Lossy, InvalidGraph, "codec lossy does not give back the weight that it packed"),
        (Boastful, InvalidGraph, "codec boastful predicted 1 bytes and packed"),
        (Vague, InvalidArtifact, "the stored tensors are"),
    ],
)
def test_a_codec_that_breaks_its_word_is_refused(
    kind: type[MultiBinary], error: type[InvalidGraph] | type[InvalidArtifact], what: str
) -> None:
    unit, _ = lowered(kind(rows=ROWS, columns=COLUMNS, block=128, orders=ORDERS))
    with pytest.raises(error, match=what) as caught:
        unit.step.run(unit)
    assert caught.value.where[0].endswith("h0.q")


def test_a_lowering_is_needed() -> None:
    unit = make_unit(Pack(), {"h0.q": torch.zeros(2, 8)})
    with pytest.raises(MissingAnnotation, match="the layer has no @lowered"):
        unit.step.run(unit)
