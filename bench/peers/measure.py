"""Judge dense weights by the forward of our own module, as ``qdc eval`` does."""

from pathlib import Path

import torch
from torch import Tensor

import qdc
from qdc.errors import QdcError
from qdc.evaluation.evaluate import Comparison, compare
from qdc.evaluation.held_out import held_out_windows
from qdc.frontend.opening import open_model
from qdc.text.source import read_text
from qdc.text.tokenizer import encoder, load_tokenizer

WINDOWS = 64


def compare_weights(
    model_folder: Path, weights: dict[str, Tensor], held_out: Path, windows: int = WINDOWS
) -> Comparison:
    """Compare the model under ``weights``, by layer path, with the original on held-out text.

    Raises QdcError if a weight has no place in the model or another shape.
    """
    facts = open_model(model_folder)[1].graph.model
    original, candidate = (qdc.load_original(model_folder) for _ in range(2))
    state = candidate.state_dict()
    wrong = [
        name
        for name, weight in weights.items()
        if f"{name}.weight" not in state or state[f"{name}.weight"].shape != weight.shape
    ]
    if wrong:
        raise QdcError("weights have no place in the model", where=wrong)
    new = {f"{name}.weight": weight.float() for name, weight in weights.items()}
    candidate.load_state_dict(new, strict=False)
    encode = encoder(load_tokenizer(model_folder))
    cut = held_out_windows(read_text(held_out).documents, encode, facts.max_length, windows)
    with torch.inference_mode():
        return compare(candidate, original, cut, facts.mask_token_id)
