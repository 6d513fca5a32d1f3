"""Weights of tokens in second moments by how sure the original model is of its predictions there.

Source: DLLMQuant (arXiv 2508.14090), certainty-guided quantisation (CGQ): x_t is multiplied by
v_t = base + sqrt(confidence_t), the base 1 for masked and 0.7 for visible tokens, so x_t x_t^T
counts v_t^2. There is no official code. A reimplementation has c_t = 0.5 for visible and
0.5 + confidence_t for masked tokens, and H = 2 X diag(c) X^T.

Confidence is the probability of the token that the original model predicts at a place, the mask
token left out, before anything is remasked: in front of the calibration one sweep through the
original model on the very states that are calibrated on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qdc.ir.calibration_use import TokenCertainty
from qdc.passkit.predictor import Predictor
from qdc.streaming.batches import Batches

TokenWeights = Literal["equal", "certainty", "certainty-linear", "guided"]
BASES = {"certainty": (1.0, 0.7), "certainty-linear": (0.5, 0.5)}
"""Of masked and of visible tokens."""
EXPONENTS = {"certainty": 2.0, "certainty-linear": 1.0}
WITHOUT = "leave token-weights out"
"""What to do where the model has no predictions."""


@dataclass(frozen=True)
class Certainty:
    """How confidence becomes a weight."""

    rule: TokenWeights
    base: tuple[float, float] | None = None
    """Of masked and of visible tokens; that of the rule if None."""
    exponent: float | None = None
    """Of base and confidence together; that of the rule if None."""

    def weights(self, confidence: Tensor, masked: Tensor) -> Tensor:
        """Weigh tokens.

        Args:
            confidence: ``f64[...]`` in 0..1.
            masked: ``bool[...]``.

        Returns:
            ``f32[...]``, positive.
        """
        hidden, visible = self.base or BASES[self.rule]
        exponent = EXPONENTS[self.rule] if self.exponent is None else self.exponent
        sure = confidence.clamp(0, 1)
        base = torch.full_like(sure, visible).masked_fill(masked, hidden)
        added = sure.sqrt() if self.rule == "certainty" else sure * masked
        found: Tensor = (base + added) ** exponent
        return found.float()


def confidences(predictor: Predictor, batches: Batches, wanted: Sequence[Tensor]) -> Tensor:
    """What the original model gives to its best token at each place, ``f64[samples, length]``.

    Args:
        predictor: the original model; swept through once.
        batches: the states, ``i64[b, length]`` each.
        wanted: for each batch ``bool[b, length]``: where there are data. 0 elsewhere.
    """
    return torch.cat([found.probability for found in predictor.best(batches, wanted)])


def use_of(
    certainty: Certainty, confidence: Tensor, weights: Tensor, masked: Tensor, data: Tensor
) -> TokenCertainty:
    """What confidence and weights came to, for the report; all tensors ``[samples, length]``."""

    def mean(here: Tensor) -> float | None:
        return confidence[here].mean().item() if bool(here.any()) else None

    return TokenCertainty(
        rule=certainty.rule,
        tokens=int(data.sum()),
        masked=mean(masked & data),
        visible=mean(~masked & data),
        least=weights[data].min().item(),
        most=weights[data].max().item(),
    )
