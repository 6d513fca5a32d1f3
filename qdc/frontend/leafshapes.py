"""What the common leaves of a model give on the meta device, without running them there.

Some of torch's functions are written in Python on the meta device, and the first of them that is
called imports torch's compiler and an algebra system: 1.4 seconds of the processor, whatever the
model. What these leaves give is plain from what they read.
"""

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdc.models.layers import Attention, RMSNorm, Rotary

BY_ELEMENT = (F.silu, operator.add, operator.mul)
"""Functions between the leaves that work number by number."""
PLACES = (torch.int64, torch.int32)
"""Dtypes of rows of an embedding."""
HEADS = 4
"""Axes of queries, keys and values: batch, length, heads, columns."""


def given_by(leaf: nn.Module, read: Sequence[Any]) -> Tensor | None:
    """An empty tensor of the shape and dtype that a leaf gives.

    Args:
        leaf: a module on the meta device.
        read: the arguments of its call, tensors on the meta device.

    Returns:
        None if this is no common leaf, or if what it reads does not fit: running it says so then.
    """
    if not read or not isinstance(read[0], Tensor):
        return None
    value = read[0]
    if type(leaf) is nn.Embedding and value.dtype in PLACES:
        return _empty(leaf.weight.dtype, *value.shape, leaf.embedding_dim)
    if type(leaf) is nn.Linear:
        return _of_a_linear(leaf, value)
    if type(leaf) is RMSNorm:
        return _of_a_norm(leaf.weight, value)
    if type(leaf) is Rotary and value.ndim == HEADS and value.shape[-1] == leaf.head_width:
        return _empty(value.dtype, *value.shape)
    if type(leaf) is Attention and len(read) >= len(("query", "key", "value")):
        return _of_attention(value, *read[1:3])
    return None


def _of_a_linear(leaf: nn.Linear, value: Tensor) -> Tensor | None:
    tensors = [leaf.weight, value] + ([] if leaf.bias is None else [leaf.bias])
    if value.shape[-1:] != leaf.weight.shape[1:] or len({t.dtype for t in tensors}) > 1:
        return None
    return _empty(value.dtype, *value.shape[:-1], len(leaf.weight))


def _of_attention(query: Tensor, key: Tensor, values: Tensor) -> Tensor | None:
    if query.ndim != HEADS or key.shape != values.shape or key.shape[:2] != query.shape[:2]:
        return None
    if len({query.dtype, key.dtype, values.dtype}) > 1:
        return None
    if key.shape[-1] != query.shape[-1] or query.shape[2] % key.shape[2]:
        return None
    return _empty(query.dtype, *query.shape[:2], query.shape[2] * query.shape[3])


def _of_a_norm(gains: Tensor | None, value: Tensor) -> Tensor | None:
    if gains is None or value.shape[-1:] != gains.shape:
        return None
    return _empty(torch.promote_types(gains.dtype, value.dtype), *value.shape)


def given_by_element(function: object, read: Sequence[Any]) -> Tensor | None:
    """The same for a function of tensors of one shape and dtype; None for all else."""
    if function not in BY_ELEMENT or not all(isinstance(value, Tensor) for value in read):
        return None
    kinds = {(value.shape, value.dtype) for value in read}
    return _empty(read[0].dtype, *read[0].shape) if len(kinds) == 1 else None


def _empty(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
