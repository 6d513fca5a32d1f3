"""Packed modules as citizens of torch: traced, exported, saved, refused a gradient."""

from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import tests.support.interpreter  # noqa: F401
from qdc.backends.triton.modules import PackedEmbedding, PackedLinear
from qdc.backends.triton.parts import Part, can_join
from qdc.errors import QdcError
from qdc.format.codec import Codec
from qdc.format.uniformgrid import UniformGrid
from tests.support.kernels import binary_layer, trellis_part, uniform_layer


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = PackedEmbedding(
            uniform_layer(1, 40, 64, 64, 8, "float").part, torch.float16, "cpu"
        )
        self.stage = PackedLinear(
            [binary_layer(s, 24, 64, 64, (2,)).part for s in (2, 3)], torch.float16, "cpu"
        )
        self.rings = PackedLinear([trellis_part(5, 48, 48)], torch.float16, "cpu")
        self.head = PackedLinear(
            [uniform_layer(4, 40, 48, 48, 8, "float").part], torch.float16, "cpu"
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.rings(torch.tanh(self.stage(self.embedding(ids)))))
        return logits


class CalledOperators(TorchDispatchMode):
    """Notes each call of an operator of this package."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if "qdc" in str(func):
            self.seen.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


IDS = torch.tensor([[3, 1, 4], [1, 5, 9]])


def test_compiles_without_a_break(model: Model) -> None:
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(IDS), model(IDS))


def test_exports(model: Model) -> None:
    with torch.no_grad():
        program = torch.export.export(model, (IDS,))
        assert torch.equal(program.module()(IDS), model(IDS))
    names = {str(node.target) for node in program.graph.nodes}
    assert {n for n in names if n.startswith("qdc.")} == {
        "qdc.binary_linear.default",
        "qdc.trellis_linear.default",
        "qdc.uniform_embedding.default",
        "qdc.uniform_linear.default",
    }


@pytest.mark.parametrize("which", ["binary", "uniform", "trellis", "embedding"])
def test_operators_keep_their_promises(model: Model, which: str) -> None:
    modules: dict[str, PackedLinear | PackedEmbedding] = {
        "binary": model.stage,
        "uniform": model.head,
        "trellis": model.rings,
        "embedding": model.embedding,
    }
    module = modules[which]
    given = IDS if which == "embedding" else torch.randn(3, module.columns).half()
    with torch.no_grad(), CalledOperators() as called:
        module(given)
    (call,) = called.seen
    torch.library.opcheck(*call)


def test_a_gradient_is_refused(model: Model) -> None:
    x = torch.randn(2, 64, dtype=torch.float16, requires_grad=True)
    with pytest.raises(QdcError, match="packed layers have no gradient"):
        model.stage(x)


def test_state_moves_through_a_state_dict(model: Model) -> None:
    other = Model()
    for buffer in other.buffers():
        buffer.zero_()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(other(IDS), model(IDS))
    assert not list(model.parameters())


def test_what_cannot_join() -> None:
    one, two = binary_layer(1, 8, 128, 64, (2, 1)).part, binary_layer(1, 8, 128, 64, (1, 2)).part
    assert can_join([one.codec, one.codec])
    assert not can_join([one.codec, two.codec])
    with pytest.raises(QdcError, match="cannot be one launch"):
        PackedLinear([one, two], torch.float16, "cpu")


class Other(Codec):
    """A codec of somebody else."""

    name: ClassVar[str] = "other"

    @property
    def payload_bits(self) -> int:
        return 0

    def specification(self):  # type: ignore[no-untyped-def]
        return {}

    def pack(self, working):  # type: ignore[no-untyped-def]
        return {}

    unpack = dense = pack


@pytest.mark.parametrize(
    ("codec", "words"),
    [
        (Other(rows=1, columns=8), "no kernel for layers stored as other"),
        (binary_layer(1, 8, 48, 24, (1, 1)).part.codec, "blocks of multiples of 32"),
        (UniformGrid(rows=8, columns=96, group=48, bits=2), "groups of multiples of 32"),
    ],
)
def test_codecs_without_a_kernel_are_refused(codec: Codec, words: str) -> None:
    with pytest.raises(QdcError, match=words) as caught:
        PackedLinear([Part(codec, {})], torch.float16, "cpu")
    assert "reference" in str(caught.value.help)


def test_dtypes_without_a_kernel_are_refused() -> None:
    with pytest.raises(QdcError, match="float64"):
        PackedLinear([binary_layer(1, 8, 64, 64, (1,)).part], torch.float64, "cpu")


def test_without_cuda_the_reference_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(QdcError, match="runs on CUDA devices, not on cpu") as caught:
        PackedLinear([binary_layer(1, 8, 64, 64, (1,)).part], torch.float16, "cpu")
    assert "reference" in str(caught.value.help)


def test_without_triton_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdc.backends.triton.support.find_spec", lambda name: None)
    with pytest.raises(QdcError, match="not installed") as caught:
        PackedLinear([binary_layer(1, 8, 64, 64, (1,)).part], torch.float16, "cpu")
    assert "qdc-compiler[triton]" in str(caught.value.help)
