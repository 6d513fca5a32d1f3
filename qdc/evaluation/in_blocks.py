"""Reading masked text as a model is trained that goes by attention blocks: noise behind clean text.

Masks of a whole window at once would show a block the gaps of those before it, which its sampler
has filled by then. So each block is read behind the clean text before it. One forward does so for
all blocks: it reads the masked window and the clean one side by side, under the same positions, and
a masked block sees itself and the clean blocks before it. Source: block diffusion, arXiv 2503.09573
(the vectorized loss), which SDAR and LLaDA2 are trained by.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qdc.models.layers import takes_windows
from qdc.models.predictions import Logits, logits_at, predicted, sources
from qdc.models.window import Window, through

Read = Callable[[Logits, Tensor, Tensor, Tensor, int], Tensor]
"""Logits ``[places, vocabulary]`` of a model, of masked windows ``i64[b, length]`` and of the same
ones without masks, that predict the places of ``bool[b, length]``, row by row; and how far in front
of a token its prediction stands."""


def at_once(model: Logits, noisy: Tensor, clean: Tensor, wanted: Tensor, shift: int) -> Tensor:
    """Read masked windows as they are."""
    return predicted(model, noisy, wanted, shift)


def block_by_block(block: int) -> Read:
    """Read each block of masked windows behind clean ones.

    Args:
        block: tokens of an attention block of the model.
    """

    def read(model: Logits, noisy: Tensor, clean: Tensor, wanted: Tensor, shift: int) -> Tensor:
        rows, places = wanted.nonzero(as_tuple=True)
        columns = sources(places, shift)
        if shift:
            # What predicts the first token of a block stands in the block before it: read clean.
            columns = columns + noisy.shape[1] * (columns % block == block - 1)
        body = getattr(model, "module", model)
        if isinstance(body, nn.Module) and takes_windows(body):
            return _side_by_side(model, noisy, clean, rows, columns)
        found = _one_after_the_other(model, noisy, clean, block)
        return found[rows.to(found.device), columns.to(found.device)]

    return read


class _Twice(Window):
    """A text under the same positions twice: masked, then clean."""

    def __init__(self, rows: int, length: int, device: torch.device) -> None:
        places = torch.arange(length, device=device).repeat(2).expand(rows, -1)
        super().__init__(places, torch.ones_like(places, dtype=torch.bool), keeps=False)

    def _mask(self, block: int | None) -> Tensor | None:
        number = self.positions[:1] // (block or self.positions.shape[1])
        asks, answers = number[:, :, None], number[:, None, :]
        masked = torch.arange(number.shape[1], device=number.device) < number.shape[1] // 2
        of_masked, by_masked = masked[:, None], masked[None, :]
        own = of_masked & by_masked & (asks == answers)
        before = of_masked & ~by_masked & (answers < asks)
        clean = ~of_masked & ~by_masked & (answers <= asks)
        return (own | before | clean)[:, None]


def _side_by_side(
    model: Logits, noisy: Tensor, clean: Tensor, rows: Tensor, columns: Tensor
) -> Tensor:
    """Logits at positions of masked windows with the clean ones behind them."""
    both = torch.cat((noisy, clean), 1)
    with through(_Twice(len(noisy), noisy.shape[1], noisy.device)):
        return logits_at(model, both, rows, columns)


def _one_after_the_other(model: Logits, noisy: Tensor, clean: Tensor, block: int) -> Tensor:
    """All of the same logits, by a forward for each block, of a model that knows no windows."""
    parts = []
    for first in range(0, noisy.shape[1], block):
        last = min(first + block, noisy.shape[1])
        text = torch.cat((clean[:, :first], noisy[:, first:last]), 1)
        parts.append(model(text)[:, first:last])
    return torch.cat((*parts, model(clean.clone())), 1)
