"""Clean samples and the places in them that may be masked, from whatever the source holds."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qdc.errors import InvalidCalibration
from qdc.ir.graph import ModelFacts
from qdc.ir.text_use import Pack, TextUse
from qdc.passkit.dialogues import draw_dialogues
from qdc.passkit.geometry import behind_prefix
from qdc.passkit.windows import draw_joined, draw_within
from qdc.text.joined import join, stored
from qdc.text.records import Dialogue
from qdc.text.source import TextSource
from qdc.text.tokenizer import Encoder

UNKNOWN = 0.1
"""Largest share of tokens that the tokenizer may not know."""


class Samples(NamedTuple):
    """Clean samples, and what they were made of."""

    clean: Tensor
    """``i64[samples, length]`` token ids."""
    maskable: Tensor
    """``bool[samples, length]``: where they may be masked."""
    use: TextUse


def draw_samples(
    source: TextSource,
    encode: Callable[[str], list[int]],
    model: ModelFacts,
    samples: int,
    length: int,
    seed: int,
    prefix: float,
    pack: Pack = "documents",
) -> Samples:
    """Draw windows ``i64[samples, length]`` and where they may be masked, ``bool`` of that shape.

    Of documents, all places behind the prefix; of dialogues, the answers. ``pack`` says how windows
    are made of documents. Raises InvalidCalibration if the text is too short, too little, or not
    what the tokenizer or the model know.
    """
    if source.dialogues:
        if not isinstance(encode, Encoder):
            raise InvalidCalibration(
                "prompts and answers need a tokenizer of a checkpoint", where=[source.name]
            )
        if pack != "documents":
            raise InvalidCalibration(
                f"pack={pack} is given, and the samples are prompts and answers",
                where=[source.name],
                help="leave pack out, or calibrate on documents",
            )
        found = _of_dialogues(source.dialogues, encode, samples, length, seed)
        _refuse_masks(found.clean, model, source.name)
    else:
        make = _within if pack == "within" else _joined
        clean, use = make(source.documents, encode, samples, length, seed)
        found = Samples(clean, behind_prefix(samples, length, prefix), use)
        _check_variety(use, source)
    _check_tokens(found.clean, encode, model, source.name)
    return found


def _of_dialogues(
    dialogues: Sequence[Dialogue], encode: Encoder, samples: int, length: int, seed: int
) -> Samples:
    clean, answers, counts = draw_dialogues(dialogues, encode.dialogue, samples, length, seed)
    counted = counts.looked_at == len(dialogues)
    use = TextUse(
        pack="records",
        documents=len(dialogues),
        tokens=round(counts.tokens * len(dialogues) / counts.looked_at),
        counted=counted,
        used=counts.used,
        windows=samples,
        length=length,
        distinct=_distinct(clean),
        looked_at=counts.looked_at,
        unusable=counts.unanswered,
        cut=counts.cut,
    )
    return Samples(clean, answers, use)


def _joined(
    documents: Sequence[str],
    encode: Callable[[str], list[int]],
    samples: int,
    length: int,
    seed: int,
) -> tuple[Tensor, TextUse]:
    joined = join(documents, encode)
    clean, owners = draw_joined(joined, samples, length, seed)
    use = TextUse(
        pack="documents",
        documents=joined.count,
        characters=joined.characters,
        tokens=joined.tokens(),
        counted=joined.counted,
        used=len(torch.unique(owners)),
        windows=samples,
        length=length,
        distinct=_distinct(clean),
    )
    return clean, use


def _within(
    documents: Sequence[str],
    encode: Callable[[str], list[int]],
    samples: int,
    length: int,
    seed: int,
) -> tuple[Tensor, TextUse]:
    found = draw_within(documents, encode, samples, length, seed)
    characters = stored(documents).characters
    use = TextUse(
        pack="within",
        documents=len(documents),
        characters=characters,
        tokens=round(found.tokens * characters / max(1, found.characters)),
        counted=found.looked_at == len(documents),
        used=len(torch.unique(found.owners)),
        windows=samples,
        length=length,
        distinct=_distinct(found.windows),
        looked_at=found.looked_at,
        unusable=found.too_short,
    )
    return found.windows, use


def _distinct(windows: Tensor) -> int:
    return len(torch.unique(windows, dim=0))


def _check_variety(use: TextUse, source: TextSource) -> None:
    needed = (use.windows + 1) // 2
    if use.distinct < needed:
        raise InvalidCalibration(
            f"found {use.documents} documents that give {use.distinct} different windows of "
            f"{use.length} tokens, need at least {needed} for {use.windows} samples",
            where=[source.name],
            help="give more text with --calibration, or fewer or shorter samples",
        )


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
    count = int((clean == model.mask_token_id).sum())
    if count:
        raise InvalidCalibration(
            f"the dialogues or the chat template write the mask token, {count} times",
            where=[name],
            help="leave the records that name it out",
        )
