"""Which position of a model's logits predicts which token: its own, or the next one.

Models that were made from autoregressive ones predict token i + 1 at position i. Every metric and
every sampler reads logits through this file, so that none can forget it. Source: shared facts on
the ecosystem (A.3).
"""

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from qdc.errors import NotFinite, QdcError
from qdc.models.asked import Asked, asking
from qdc.models.layers import takes_windows
from qdc.models.recalled import Recalled
from qdc.numerics.products import wide_products

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


def predicted(model: Logits, tokens: Tensor, wanted: Tensor, shift: int) -> Tensor:
    """Have a model predict the places of ``wanted``, ``bool[batch, T]``, row by row.

    Args:
        model: gets ``tokens``, and computes no other logits where it can be asked.
        tokens: ``i64[batch, T]``.
        wanted: the places.
        shift: how far in front of a token its prediction stands.

    Returns:
        ``[places, vocabulary]``. Raises ``QdcError`` for logits of another shape.
    """
    rows, places = wanted.nonzero(as_tuple=True)
    return logits_at(model, tokens, rows, sources(places, shift))


def logits_at(
    model: Logits, tokens: Tensor, rows: Tensor, columns: Tensor, *, asks: bool | None = None
) -> Tensor:
    """Logits of a model at ``rows`` and ``columns``, ``i64[positions]``, as ``predicted``.

    ``asks`` is what ``answers_asked`` says of the model, for who calls it often.
    """
    body: Any = getattr(model, "module", model)
    if answers_asked(model) if asks is None else asks:
        device = device_of(body)
        rows, columns = rows.to(device), columns.to(device)
        kept = isinstance(model, Recalled)
        with asking(Asked(rows, columns, tokens.shape, states=kept)):
            if not isinstance(model, Recalled):
                return model(tokens)
            states = model.states((tokens, rows, columns), lambda: model(tokens))
        with wide_products(device):
            logits: Tensor = body.project(states.to(device))
        return logits
    found = model(tokens)
    if found.ndim != 3 or found.shape[:2] != tokens.shape:
        raise QdcError(
            f"found logits of shape {list(found.shape)}, need [{len(tokens)}, {tokens.shape[1]}, "
            "vocabulary]",
            help="give the logits of every position",
        )
    return found[rows.to(found.device), columns.to(found.device)]


def answers_asked(model: object) -> bool:
    """Whether a model, or the module that it calls, gives the logits of what is asked for alone."""
    body = getattr(model, "module", model)
    return bool(getattr(type(body), "gives_asked", False)) and takes_windows(body)


def device_of(model: object) -> torch.device:
    """Where a model computes; of what is no module, the CPU."""
    if isinstance(model, nn.Module):
        for tensor in chain(model.parameters(), model.buffers()):
            return tensor.device
    return torch.device("cpu")


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
