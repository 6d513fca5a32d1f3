"""Judge dense weights by the forward of our own module, as ``qdc eval`` does."""

from pathlib import Path

import torch
from torch import Tensor, nn

import qdc
from bench.common.samples import held_out as windows_of
from qdc.errors import QdcError
from qdc.evaluation.evaluate import Comparison, compare
from qdc.frontend.opening import open_model

WINDOWS = 64


def with_weights(model_folder: Path, weights: dict[str, Tensor]) -> nn.Module:
    """The original model under other ``weights``, by layer path.

    Raises QdcError if a weight has no place in the model or another shape.
    """
    module = qdc.load_original(model_folder)
    state = module.state_dict()
    wrong = [
        name
        for name, weight in weights.items()
        if f"{name}.weight" not in state or state[f"{name}.weight"].shape != weight.shape
    ]
    if wrong:
        raise QdcError("weights have no place in the model", where=wrong)
    new = {f"{name}.weight": weight.float() for name, weight in weights.items()}
    module.load_state_dict(new, strict=False)
    return module


def compare_weights(
    model_folder: Path, weights: dict[str, Tensor], held_out: Path, windows: int = WINDOWS
) -> Comparison:
    """Compare the model under ``weights``, by layer path, with the original on held-out text.

    Raises QdcError as ``with_weights`` does.
    """
    candidate, original = with_weights(model_folder, weights), qdc.load_original(model_folder)
    mask = open_model(model_folder)[1].graph.model.mask_token_id
    with torch.inference_mode():
        return compare(candidate, original, windows_of(model_folder, windows, held_out), mask)
