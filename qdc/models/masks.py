"""What callers give as ``attention_mask``: every form is taken for what it says, or refused.

A layer reads ``[batch, T]`` as padding and ``bool[batch, heads, T, T]`` as who sees whom. What
callers bring is wider: Dream's published code says ``"full"``, and transformers adds masks of
zeros and very negative numbers to the scores. Read as truth values those would say the opposite.
"""

import torch
from torch import Tensor

from qdc.errors import QdcError

FULL = "full"
"""How Dream's published code asks for a text without padding."""

HIDES = -1e4
"""What additive masks hide with is no more than this; the least float16 is -65504."""

HELP = (
    "give [batch, T] with 1 for tokens and 0 for padding, or [batch, 1, T, T] of who sees whom: "
    "booleans, or floats that are added, 0 and minus infinity"
)


def read_mask(mask: object, tokens: Tensor, block: int | None) -> Tensor | None:
    """What layers take of a mask for ``tokens``, ``i64[batch, T]``.

    Args:
        mask: nothing; ``"full"``; truth values ``[batch, T]``, False or 0 for padding; or
            ``[batch or 1, heads or 1, T or 1, T]`` of who sees whom, as booleans or as floats that
            are added. The last two stand in place of the model's own blocks.
        tokens: only their shape is looked at.
        block: tokens of an attention block of the model, if it has blocks.

    Raises:
        QdcError: it has another form, shape or values that mean something else.
    """
    if mask is None:
        return None
    if isinstance(mask, str):
        if mask == FULL and block is None:
            return None
        why = f"and this model sees blocks of {block}" if mask == FULL else "which is no mask"
        raise QdcError(f"attention_mask is {mask[:64]!r}, {why}", help=HELP)
    if not isinstance(mask, Tensor):
        raise QdcError(f"attention_mask is of the type {type(mask).__name__}", help=HELP)
    _check_shape(mask, tokens)
    if torch.compiler.is_compiling():
        return mask  # no values are there to look at
    return _padding(mask) if mask.dim() == 2 else _sight(mask)


def _check_shape(mask: Tensor, tokens: Tensor) -> None:
    batch, length = tokens.shape
    shape = tuple(mask.shape)
    fits = len(shape) == 2 or (len(shape) == 4 and shape[2] in (1, length))
    if not fits or shape[0] not in (1, batch) or shape[-1] != length:
        raise QdcError(
            f"attention_mask is {list(shape)}, and the tokens are {[batch, length]}", help=HELP
        )


def _padding(mask: Tensor) -> Tensor:
    """A mask ``[batch, T]`` of truth values, as it was given."""
    if mask.dtype is torch.bool:
        return mask
    if not bool(((mask == 0) | (mask == 1)).all()):
        found = mask[(mask != 0) & (mask != 1)].flatten()[0].item()
        raise QdcError(
            f"attention_mask [batch, T] holds {found}, need 1 for tokens and 0 for padding",
            help=HELP,
        )
    if mask.is_floating_point() and not bool(mask.any(-1).all()):
        raise QdcError(
            "attention_mask [batch, T] of floats has a row of zeros, which hides its whole text, "
            "or nothing if it is added",
            help=HELP,
        )
    return mask


def _sight(mask: Tensor) -> Tensor:
    """Who sees whom, ``bool[batch or 1, heads or 1, T or 1, T]``."""
    if mask.dtype is torch.bool:
        return mask
    if not mask.is_floating_point():
        raise QdcError(
            f"attention_mask of four axes holds {str(mask.dtype).removeprefix('torch.')}, "
            "which says neither who sees whom nor what is added",
            help=HELP,
        )
    seen = mask == 0
    if not bool((seen | (mask <= HIDES)).all()):
        found = mask[~seen & ~(mask <= HIDES)].flatten()[0].item()
        raise QdcError(
            f"attention_mask adds {found}, and only 0 and what hides (at most {HIDES:g}) are taken",
            help=HELP,
        )
    return seen
