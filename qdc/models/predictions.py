"""Which position of a model's logits predicts which token: its own, or the next one.

Models that were made from autoregressive ones predict token i + 1 at position i. Every metric and
every sampler reads logits through this file, so that none can forget it. Source: shared facts on
the ecosystem (A.3).
"""

from collections.abc import Callable

from torch import Tensor

from qdc.errors import NotFinite

Logits = Callable[[Tensor], Tensor]
"""A model: ``i64[batch, T] -> [batch, T, vocabulary]``.

Position i predicts token i, or token i + 1 if the model has an attribute ``logits_shift`` of 1.
"""


def logits_shift(model: Logits) -> int:
    """How far in front of a token its prediction stands: 0 or 1."""
    return int(getattr(model, "logits_shift", 0))


def sources(places: Tensor, shift: int) -> Tensor:
    """Positions ``i64[...]`` whose logits predict the tokens at ``places``.

    The first token has none in front of it; its own position stands in.
    """
    return (places - shift).clamp(min=0)


def predictions(logits: Tensor, wanted: Tensor, shift: int) -> Tensor:
    """Logits that predict the places of ``wanted``, ``bool[batch, T]``, row by row.

    Returns ``[places, vocabulary]``.
    """
    rows, places = wanted.to(logits.device).nonzero(as_tuple=True)
    return logits[rows, sources(places, shift)]


def require_finite(logits: Tensor, which: str = "masked") -> None:
    """Raise NotFinite if any of ``[positions, vocabulary]`` is infinite or not a number.

    ``which`` positions they are is said in the error.
    """
    bad = int((~logits.isfinite()).any(-1).sum())
    if bad:
        raise NotFinite(
            f"the logits of {bad} of {len(logits)} {which} positions are not finite",
            help="check the weights for overflow, or compile with more damping",
        )
