"""Modules that stand in the place of linears and embeddings and hold packed tensors alone."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from qdc.errors import QdcError
from qdc.format.codec import Codec
from qdc.numerics.hadamard import RandomHadamard, random_signs, transform_size
from qdc.numerics.products import undisturbed

from . import support
from .packing import kept, layout_of
from .products import Arithmetic, Layer, multiply
from .ringlayout import RingLayout
from .rotations import rotate_inputs

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of activations. Products are in fp32 or bf16, whichever of these comes in."""


class PackedLinear(nn.Module):
    """A linear whose weight stays as the artifact has it.

    Args:
        codec: of the weight.
        stored: its stored tensors; planes and codes are held as they are, mapped from their file.
        bias: ``[rows]``, or None.
        dtype: of activations.
        arithmetic: ``fast``, or ``f32`` for products in fp32 whatever is faster.
        rotation: seed of the rotation of what comes in; None for none.
    """

    offsets: Tensor

    def __init__(
        self,
        codec: Codec,
        stored: Mapping[str, Tensor],
        bias: Tensor | None,
        dtype: torch.dtype,
        arithmetic: Arithmetic,
        rotation: int | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = codec.columns, codec.rows
        self.codec, self.dtype, self.arithmetic = codec, dtype, arithmetic
        layout = layout_of(codec) if support.has_compiler() else None
        self.layout = layout
        held = dict(stored) if layout is None else kept(codec, stored)
        self._names = tuple(held)
        for name, tensor in held.items():
            self.register_buffer(name, tensor)
        offsets = torch.zeros(codec.rows if layout is None else layout.padded)
        if bias is not None:
            offsets[: codec.rows] = bias
        self.register_buffer("offsets", offsets)
        self._biased = bias is not None
        self._kinds = {name: tensor.dtype for name, tensor in held.items()}
        self.rotated = rotation is not None
        if rotation is not None:
            # No part of a state dict: the seed says all of it.
            signs = random_signs(codec.columns, rotation).half()
            self.register_buffer("input_signs", signs, persistent=False)
            self._kinds["input_signs"] = signs.dtype

    def forward(self, x: Tensor) -> Tensor:
        """``[..., columns] -> [..., rows]`` in the dtype of what comes in.

        Raises:
            QdcError: the input's width or dtype is another one, gradients are asked for, or the
                module was cast or moved.
        """
        with undisturbed():
            self._check(x)
            layer = Layer(self.codec, self.layout, self._held(), self.offsets, self.arithmetic)
            flat = x.reshape(-1, self.in_features)
            if flat.shape[0] == 0:
                return x.new_empty(*x.shape[:-1], self.out_features)
            if self.rotated:
                flat = rotate_inputs(flat, self.get_buffer("input_signs"))
            result = multiply(layer, flat).to(x.dtype).contiguous()
            return result.reshape(*x.shape[:-1], self.out_features)

    @property
    def weight(self) -> Tensor:
        """The dense weight ``[rows, columns]``, decoded at each access; nothing here reads it.

        It is that of inputs as they are: a rotation is multiplied out.
        """
        found = self._decoded()
        if self.rotated:
            turn = RandomHadamard(
                self.get_buffer("input_signs").float(), transform_size(self.in_features)
            )
            found = turn.inverse(found.float())
        return found.to(self.dtype)

    @property
    def bias(self) -> Tensor | None:
        """The bias ``[rows]`` in the dtype of ``weight``, or None; nothing here reads it."""
        held = self.get_buffer("offsets")
        return held[: self.out_features].to(self.dtype) if self._biased else None

    def extra_repr(self) -> str:
        """What ``print`` shows of it."""
        turned = ", rotated" if self.rotated else ""
        return f"{self.in_features}, {self.out_features}, {self.codec.name}{turned}"

    def _decoded(self) -> Tensor:
        if isinstance(self.layout, RingLayout):
            # Stored tensors are kept: their own formula is exact, and no slower.
            stored = {name: self.get_buffer(name) for name in self.codec.specification()}
            return self.codec.dense(self.codec.unpack(stored))
        everything = torch.eye(self.in_features)
        layer = Layer(self.codec, self.layout, self._held(), torch.zeros_like(self.offsets), "f32")
        return multiply(layer, everything).T

    def _held(self) -> dict[str, Tensor]:
        buffers = self._buffers
        return {name: tensor for name in self._names if (tensor := buffers[name]) is not None}

    def _check(self, x: Tensor) -> None:
        if x.shape[-1:] != (self.in_features,):
            raise QdcError(
                f"a packed linear of {self.in_features} columns was given {tuple(x.shape)}",
                help="its input is [..., columns]",
            )
        if x.dtype not in DTYPES or not x.is_cpu:
            raise QdcError(
                f"a packed linear was given {x.dtype} on {x.device}",
                help="the backend cpu computes on the CPU, with activations in fp32, bf16 or fp16",
            )
        if x.requires_grad and torch.is_grad_enabled():
            raise QdcError(
                "packed weights have no gradient",
                help="call the model under torch.no_grad(), or load it with backend='reference'",
            )
        for name, kind in self._kinds.items():
            held = self._buffers[name]
            if held is None or held.dtype != kind or not held.is_cpu:
                raise QdcError(
                    "a packed model was cast or moved",
                    help="load it again with the dtype and the device that are wanted",
                )


class PackedEmbedding(nn.Module):
    """An embedding whose rows are decoded as they are asked for.

    Args:
        codec: of the weight.
        stored: its stored tensors, held as they are: of a mapped file what is read is resident.
        dtype: of what it gives.
    """

    def __init__(self, codec: Codec, stored: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = codec.rows, codec.columns
        self.codec, self.dtype = codec, dtype
        self._names = tuple(stored)
        for name, tensor in stored.items():
            self.register_buffer(name, tensor)

    def forward(self, ids: Tensor) -> Tensor:
        """``i64[...] -> [..., columns]``. Raises IndexError for a token that is not there."""
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.num_embeddings:
            raise IndexError(f"a token is not among the {self.num_embeddings} of the embedding")
        stored = {name: self.get_buffer(name) for name in self._names}
        rows = self.codec.dense_rows(stored, ids.flatten().long())
        return rows.to(self.dtype).reshape(*ids.shape, self.embedding_dim)

    @property
    def weight(self) -> Tensor:
        """The dense weight, decoded at each access; nothing here reads it."""
        stored = {name: self.get_buffer(name) for name in self._names}
        return self.codec.dense(self.codec.unpack(stored)).to(self.dtype)

    def extra_repr(self) -> str:
        """What ``print`` shows of it."""
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.codec.name}"
