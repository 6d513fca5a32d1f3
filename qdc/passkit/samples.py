"""Clean samples and the places in them that may be masked, from whatever the source holds."""

from collections.abc import Callable

import torch
from torch import Tensor

from qdc.errors import InvalidCalibration
from qdc.ir.graph import ModelFacts
from qdc.passkit.dialogues import draw_dialogues
from qdc.passkit.geometry import behind_prefix
from qdc.passkit.windows import draw_rows, draw_windows
from qdc.text.rows import ROWS
from qdc.text.source import TextSource
from qdc.text.tokenizer import Encoder

UNKNOWN = 0.1
"""Largest share of tokens that the tokenizer may not know."""


def draw_samples(
    source: TextSource,
    encode: Callable[[str], list[int]],
    model: ModelFacts,
    samples: int,
    length: int,
    seed: int,
    prefix: float,
) -> tuple[Tensor, Tensor]:
    """Draw windows ``i64[samples, length]`` and where they may be masked, ``bool`` of that shape.

    Of documents, all places behind the prefix; of dialogues, the answers. Raises InvalidCalibration
    if the text is too short, too little, or not what the tokenizer or the model know.
    """
    if source.rows is not None:
        clean = draw_rows(source.rows, samples, length, seed)
        maskable = behind_prefix(samples, length, prefix)
        _check_variety(clean, source)
        _refuse_masks(clean, model, source.name)
    elif source.dialogues:
        if not isinstance(encode, Encoder):
            raise InvalidCalibration(
                "prompts and answers need a tokenizer of a checkpoint", where=[source.name]
            )
        clean, maskable = draw_dialogues(source.dialogues, encode.dialogue, samples, length, seed)
        _refuse_masks(clean, model, source.name)
    else:
        clean = draw_windows(source.documents, encode, samples, length, seed)
        maskable = behind_prefix(samples, length, prefix)
        _check_variety(clean, source)
    _check_tokens(clean, encode, model, source.name)
    return clean, maskable


def _check_variety(clean: Tensor, source: TextSource) -> None:
    samples, length = clean.shape
    different, needed = len(torch.unique(clean, dim=0)), (samples + 1) // 2
    if different < needed:
        raise InvalidCalibration(
            f"found {_count(source)} that give {different} different windows of "
            f"{length} tokens, need at least {needed} for {samples} samples",
            where=[source.name],
            help="give more text with --calibration, or fewer or shorter samples",
        )


def _count(source: TextSource) -> str:
    if source.rows is not None:
        return f"{len(source.rows)} rows of token ids"
    return f"{len(source.documents)} documents"


def _check_tokens(
    clean: Tensor, encode: Callable[[str], list[int]], model: ModelFacts, name: str
) -> None:
    highest = int(clean.max())
    if highest >= model.vocabulary:
        raise InvalidCalibration(
            f"found token {highest}, need one below {model.vocabulary}, the model's vocabulary",
            where=[name],
            help="put the tokenizer of this model into its folder",
        )
    unknown = encode.unknown if isinstance(encode, Encoder) else None
    share = 0.0 if unknown is None else (clean == unknown).double().mean().item()
    if share > UNKNOWN:
        raise InvalidCalibration(
            f"the tokenizer does not know {share:.0%} of the text, need at most {UNKNOWN:.0%}",
            where=[name],
            help="give text in a language that the model was trained on",
        )


def _refuse_masks(clean: Tensor, model: ModelFacts, name: str) -> None:
    if model.mask_token_id is None:
        return
    count = int((clean == model.mask_token_id).sum())
    if count:
        rows = name == ROWS
        what = "the token ids hold" if rows else "the dialogues or the chat template write"
        raise InvalidCalibration(
            f"{what} the mask token, {count} times",
            where=[name],
            help="give clean ids: qdc masks them itself"
            if rows
            else "leave the records that name it out",
        )
