"""What the pipelines of transformers have to know of shifted logits.

``fill-mask`` reads the logits at the place of the mask. A model whose position i predicts token
i + 1 has the answer one place earlier; read in place it gives plausible nonsense, without a word.
"""

import functools
from typing import Any

import torch
from transformers import FillMaskPipeline

from qdc.models.predictions import logits_shift, sources

ALIGNS = "aligns_shifted_logits"


def align_fill_mask() -> None:
    """Let ``fill-mask`` read each prediction where it stands; models without a shift see nothing.

    The class itself is changed, not the registered task: pipelines are also built by hand.
    """
    plain: Any = FillMaskPipeline._forward
    if getattr(plain, ALIGNS, False):
        return

    @functools.wraps(plain)
    def forward(self: FillMaskPipeline, model_inputs: Any) -> Any:
        outputs = plain(self, model_inputs)
        shift = logits_shift(self.model)
        if shift:
            logits = outputs["logits"]
            places = torch.arange(logits.shape[1], device=logits.device)
            outputs["logits"] = logits[:, sources(places, shift)]
        return outputs

    setattr(forward, ALIGNS, True)
    FillMaskPipeline._forward = forward  # type: ignore[method-assign]
