"""Linears and embeddings that hold an artifact's tensors and decode them when they are called.

The class of a module is replaced by one derived from it, whose ``weight`` is computed: whatever the
module's forward does with its weight, it does with the decoded one. The tensors are buffers, under
the suffixes of ``docs/format.md``, so that a state dict has the artifact's names.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qdc.errors import InvalidArtifact, UnsupportedModel
from qdc.format.codec import Codec
from qdc.format.multibinary import MultiBinary
from qdc.format.uniformgrid import UniformGrid
from qdc.ir.keys import file_key
from qdc.ir.tensors import torch_dtype
from qdc.ir.types import ValueType
from qdc.numerics.hadamard import RandomHadamard, transform_size

LIKE = "dtype_and_device"
"""An empty buffer that no file holds: it follows the module's dtype, as stored tensors do not."""

_CLASSES: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


class PackedModule(nn.Module):
    """What is added to the class of a linear or an embedding."""

    plain: ClassVar[type[nn.Module]]
    """The class that the module had."""
    codec: Codec

    @property
    def specification(self) -> dict[str, ValueType]:
        """Types of the tensors of this layer in the artifact, by suffix."""
        return self.codec.specification()

    @property
    def stored(self) -> dict[str, Tensor]:
        """The tensors themselves."""
        return {suffix: self.get_buffer(suffix) for suffix in self.specification}

    @property
    def weight(self) -> Tensor:
        """The dense weight ``[rows, columns]`` in the module's dtype, decoded anew each time."""
        return _decode(self.codec, self.stored).to(self.get_buffer(LIKE).dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedModule":
        """Move the stored tensors as ``fn`` does, and keep their dtypes: they are the format's."""
        before = self.stored
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for suffix, tensor in before.items():
            moved = self.get_buffer(suffix)
            if moved.dtype != tensor.dtype:
                setattr(self, suffix, tensor.to(moved.device))
        return self


class _Embedding(PackedModule):
    """An embedding that decodes the rows of its tokens alone."""

    def forward(self, tokens: Tensor) -> Tensor:
        """``i64[...] -> [..., columns]``."""
        used, places = torch.unique(tokens, return_inverse=True)
        codec = self.codec.model_copy(update={"rows": len(used)})
        whole, part = self.codec.specification(), codec.specification()
        stored = {
            suffix: tensor if whole[suffix] == part[suffix] else tensor[used]
            for suffix, tensor in self.stored.items()
        }
        rows = _decode(codec, stored).to(self.get_buffer(LIKE).dtype)
        return nn.functional.embedding(places, rows)


class _Rotated(PackedModule):
    """A linear whose inputs the artifact rotates, and whose stored weight is one for such inputs.

    A plain linear rotates what it reads; any other code gets a weight of inputs as they are.
    """

    seed: int
    turn: RandomHadamard | None
    """The rotation, once it was drawn, on the device where it was used last."""

    @property
    def weight(self) -> Tensor:
        """The dense weight of inputs as they are, in the module's dtype, anew each time."""
        decoded = _decode(self.codec, self.stored).float()
        return self._rotation(decoded).inverse(decoded).to(self.get_buffer(LIKE).dtype)

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Any:
        """``[..., columns] -> [..., rows]``."""
        if self.plain.forward is not nn.Linear.forward:
            return super().forward(x, *others, **named)
        turned = self._rotation(x).forward(x.float()).to(x.dtype)
        weight = _decode(self.codec, self.stored).to(self.get_buffer(LIKE).dtype)
        return nn.functional.linear(turned, weight, self._parameters["bias"])

    def _rotation(self, where: Tensor) -> RandomHadamard:
        if self.turn is None or self.turn.signs.device != where.device:
            self.turn = RandomHadamard.of(self.codec.columns, self.seed, where.device)
        return self.turn


class _Tied(PackedModule):
    """A head without tensors of its own: its weight is that of the embedding."""

    source: tuple[PackedModule]
    """In a tuple, so that it is no submodule of the head."""

    @property
    def specification(self) -> dict[str, ValueType]:
        """Nothing is stored here."""
        return {}

    @property
    def weight(self) -> Tensor:
        """The embedding's weight, in the module's dtype and on its device."""
        return self.source[0].weight.to(self.get_buffer(LIKE))


def pack(module: nn.Module, codec: Codec, layer: str, rotation: int | None = None) -> None:
    """Replace the weight of a linear or an embedding on meta by what its codec stores.

    Args:
        module: the linear or the embedding.
        codec: of its weight.
        layer: its path, for errors.
        rotation: seed of the rotation of what a linear reads.

    Raises:
        InvalidArtifact: it is neither, its weight has another shape, or it cannot be rotated.
        UnsupportedModel: it uses the names of the tensors for something else.
    """
    if not isinstance(module, nn.Linear | nn.Embedding):
        raise InvalidArtifact("the model has no linear or embedding there", where=[layer])
    if tuple(module.weight.shape) != (codec.rows, codec.columns):
        raise InvalidArtifact(
            f"the model has no {codec.rows} x {codec.columns} weight there", where=[layer]
        )
    claimed = [suffix for suffix in codec.specification() if hasattr(module, suffix)]
    if claimed:
        raise UnsupportedModel(
            f"{type(module).__name__} has attributes with the names of stored tensors",
            where=[file_key(layer, suffix) for suffix in claimed],
            help="load it with qdc.load",
        )
    if rotation is not None:
        if not isinstance(module, nn.Linear) or transform_size(codec.columns) < 2:
            raise InvalidArtifact("a rotation is named of what cannot be rotated", where=[layer])
        _change(module, _Rotated)
        module.seed, module.turn = rotation, None  # type: ignore[assignment]
    else:
        _change(module, _Embedding if _looks_rows_up(module, codec) else PackedModule)
    module.codec = codec  # type: ignore[assignment]
    for suffix, kind in codec.specification().items():
        shape = [int(size) for size in kind.shape]
        empty = torch.empty(shape, dtype=torch_dtype(kind.dtype), device="meta")
        module.register_buffer(suffix, empty)


def tie(head: nn.Module, source: nn.Module) -> None:
    """Let a head read the weight of a packed embedding."""
    assert isinstance(source, PackedModule)
    _change(head, _Tied)
    head.source = (source,)  # type: ignore[assignment]


def check(module: nn.Module, layer: str) -> None:
    """Look at the values that were loaded. Raises ``InvalidArtifact``."""
    if isinstance(module, PackedModule) and module.specification:
        module.codec.check(module.stored, layer)


def unpack(model: nn.Module, dtype: torch.dtype) -> None:
    """Give every packed module of a model its dense weight, and its own class again."""
    found = [module for module in model.modules() if isinstance(module, PackedModule)]
    weights: dict[int, nn.Parameter] = {}
    for module in found:
        if not isinstance(module, _Tied):
            module.to(dtype)
            weights[id(module)] = nn.Parameter(module.weight, requires_grad=False)
    for module in found:
        owner = module.source[0] if isinstance(module, _Tied) else module
        names = (LIKE, *module.specification)
        module.__class__ = module.plain  # type: ignore[assignment]
        for name in names:
            delattr(module, name)
        for attribute in ("codec", "source", "seed", "turn"):
            vars(module).pop(attribute, None)
        module.register_parameter("weight", weights[id(owner)])


def _looks_rows_up(module: nn.Module, codec: Codec) -> bool:
    """Whether it is a plain embedding, and the codec one whose rows stand alone."""
    plain = type(module).forward is nn.Embedding.forward and module.max_norm is None
    return plain and isinstance(codec, MultiBinary | UniformGrid)


def _decode(codec: Codec, stored: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return codec.dense(codec.unpack(stored))


def _change(module: nn.Module, kind: type[PackedModule]) -> None:
    weight: Any = module.weight
    module.__class__ = _derived(type(module), kind)
    del module._parameters["weight"]
    module.register_buffer(LIKE, torch.empty(0, dtype=weight.dtype), persistent=False)
    # Without a weight of its own there is nothing that transformers would have to initialise.
    module._is_hf_initialized = True  # type: ignore[assignment]


def _derived(plain: type[nn.Module], kind: type[PackedModule]) -> type[nn.Module]:
    if (plain, kind) not in _CLASSES:
        _CLASSES[plain, kind] = type(f"Packed{plain.__name__}", (kind, plain), {"plain": plain})
    return _CLASSES[plain, kind]
