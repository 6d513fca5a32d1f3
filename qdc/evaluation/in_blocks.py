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
from qdc.models.predictions import Logits, logits_shift
from qdc.models.window import Window, through

Read = Callable[[Logits, Tensor, Tensor], Tensor]
"""Logits ``[b, length, vocabulary]`` of a model, of masked windows ``i64[b, length]`` and of the
same ones without masks."""


def at_once(model: Logits, noisy: Tensor, clean: Tensor) -> Tensor:
    """Read masked windows as they are."""
    return model(noisy)


def block_by_block(block: int) -> Read:
    """Read each block of masked windows behind clean ones.

    Args:
        block: tokens of an attention block of the model.
    """

    def read(model: Logits, noisy: Tensor, clean: Tensor) -> Tensor:
        body = getattr(model, "module", model)
        if isinstance(body, nn.Module) and takes_windows(body):
            found = _side_by_side(model, noisy, clean)
        else:
            found = _one_after_the_other(model, noisy, clean, block)
        return _shifted(model, *found, block)

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


def _side_by_side(model: Logits, noisy: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of masked and of clean windows, ``[b, length, vocabulary]`` each."""
    both = torch.cat((noisy, clean), 1)
    with through(_Twice(len(noisy), noisy.shape[1], noisy.device)):
        masked, whole = model(both).chunk(2, dim=1)
    return masked, whole


def _one_after_the_other(
    model: Logits, noisy: Tensor, clean: Tensor, block: int
) -> tuple[Tensor, Tensor]:
    """The same by a forward for each block, of a model that knows nothing of windows."""
    parts = []
    for first in range(0, noisy.shape[1], block):
        last = min(first + block, noisy.shape[1])
        text = torch.cat((clean[:, :first], noisy[:, first:last]), 1)
        parts.append(model(text)[:, first:last])
    return torch.cat(parts, 1), model(clean.clone())


def _shifted(model: Logits, masked: Tensor, whole: Tensor, block: int) -> Tensor:
    """What predicts the first token of a block stands in the block before it, which is clean."""
    if not logits_shift(model):
        return masked
    last = torch.arange(masked.shape[1], device=masked.device) % block == block - 1
    return torch.where(last[:, None], whole, masked)
