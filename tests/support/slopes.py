"""Derivatives of drawn tokens' losses by what linears give out, of a plain model by autograd."""

from pathlib import Path

import torch
from torch import Tensor

from qdc.models.predictions import predictions
from qdc.numerics.random_numbers import uniforms
from qdc.runtime.load import load_checkpoint
from tests.support.checkpoints import MASK


def drawn_slopes(
    model: Path, tokens: Tensor, names: list[str], *, shift: int = 0, everywhere: bool = False
) -> tuple[dict[str, Tensor], int]:
    """Run a model on samples, three at a time, and take the derivatives that guide is to find.

    Args:
        model: its folder.
        tokens: i64[samples, length].
        names: linears.
        shift: of the family's predictions.
        everywhere: whether all tokens are predicted, or masked ones.

    Returns:
        By linear f32[samples, length, rows], and how many tokens were predicted.
    """
    module = load_checkpoint(model, "cpu", torch.float32)
    module.requires_grad_()
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    for name in names:

        def hold(_: object, given: object, result: Tensor, name: str = name) -> None:
            result.retain_grad()
            seen[name].append(result)

        module.get_submodule(name).register_forward_hook(hold)
    total, count, sample = torch.zeros(()), 0, 0
    for batch in torch.split(tokens, 3):
        mask = torch.ones_like(batch, dtype=torch.bool) if everywhere else batch == MASK
        found = predictions(module(batch), mask, shift)
        numbers = mask.sum(1).tolist()
        samples = range(sample, sample + len(numbers))
        draws = [uniforms(n, "guide", 0, s) for s, n in zip(samples, numbers, strict=True)]
        chances, sample = torch.cat(draws).double(), samples.stop
        count += len(found)
        chosen = found.detach().double().softmax(-1).cumsum(-1)
        drawn = (chosen > (chances[:, None] * chosen[:, -1:])).int().argmax(-1)
        total = total - found.log_softmax(-1).gather(1, drawn[:, None]).sum()
    torch.autograd.backward(total)
    slopes = {
        name: torch.cat([each.grad for each in parts if each.grad is not None])
        for name, parts in seen.items()
    }
    return slopes, count
