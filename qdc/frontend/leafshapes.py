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


def given_by(leaf: nn.Module, read: Sequence[Any]) -> Tensor | None:
    """An empty tensor of the shape and dtype that a leaf gives.

    Args:
        leaf: a module on the meta device.
        read: the arguments of its call, tensors on the meta device.

    Returns:
        None if this is no common leaf, or if what it reads does not fit: running it says so then.
    """
    value: Tensor = read[0]
    if type(leaf) is nn.Embedding:
        return _empty(leaf.weight.dtype, *value.shape, leaf.embedding_dim)
    if type(leaf) is nn.Linear and value.shape[-1] == leaf.in_features:
        return _empty(value.dtype, *value.shape[:-1], leaf.out_features)
    if type(leaf) is RMSNorm:
        return _of_a_norm(leaf.weight, value)
    if type(leaf) is Rotary and value.shape[-1] == leaf.head_width:
        return _empty(value.dtype, *value.shape)
    if type(leaf) is Attention:
        key, values = read[1], read[2]
        fit = key.shape == values.shape and key.shape[:2] == value.shape[:2]
        if fit and key.shape[-1] == value.shape[-1] and value.shape[2] % key.shape[2] == 0:
            return _empty(value.dtype, *value.shape[:2], value.shape[2] * value.shape[3])
    return None


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
