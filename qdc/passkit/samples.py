"""Clean samples and the places in them that may be masked, from whatever the source holds."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qdc.errors import InvalidCalibration
from qdc.ir.facts import ModelFacts
from qdc.ir.text_use import Pack, TextUse
from qdc.passkit.dialogues import draw_dialogues
from qdc.passkit.geometry import behind_prefix
from qdc.passkit.padding import draw_padded, filling
from qdc.passkit.windows import draw_joined, draw_rows, draw_within
from qdc.streaming.batches import PADDING
from qdc.text.joined import join, stored
from qdc.text.records import Dialogue
from qdc.text.rows import ROWS
from qdc.text.source import TextSource
from qdc.text.tokenizer import Encoder

Encode = Callable[[str], list[int]]
Size = tuple[int, int]
"""Number of windows, and tokens of each."""
UNKNOWN = 0.1
"""Largest share of tokens that the tokenizer may not know."""


class Samples(NamedTuple):
    """Clean samples, and what they were made of."""

    clean: Tensor
    """``i64[samples, length]`` token ids."""
    maskable: Tensor
    """``bool[samples, length]``: where they may be masked."""
    use: TextUse
    segments: Tensor | None = None
    """``i64[samples, length]``: which places see each other (``qdc.streaming.batches``); None if
    all of a window do."""


def draw_samples(
    source: TextSource,
    encode: Callable[[str], list[int]],
    model: ModelFacts,
    samples: int,
    length: int,
    seed: int,
    prefix: float,
    pack: Pack = "documents",
    *,
    isolate: bool = False,
) -> Samples:
    """Draw windows ``i64[samples, length]`` and where they may be masked, ``bool`` of that shape.

    All places behind the prefix, which is a share of a padded document's own tokens; of dialogues,
    of these the answers. ``pack`` says how windows are made of documents; with ``isolate``
    documents in one window, or records, do not see each other. Raises InvalidCalibration if the
    text is too short, too little, or not what the tokenizer or the model know.
    """
    if source.rows is not None:
        found = _of_rows(source.rows, (samples, length), seed, prefix, pack, isolate=isolate)
        _check_variety(found.use, source)
        _refuse_masks(found.clean, model, source.name)
        _check_tokens(found.clean, encode, model, source.name)
        return found
    fill = filling(encode, model.vocabulary, model.mask_token_id) if pack == "pad" else None
    if source.dialogues:
        if not isinstance(encode, Encoder):
            raise InvalidCalibration(
                "prompts and answers need a tokenizer of a checkpoint", where=[source.name]
            )
        if pack == "within":
            raise InvalidCalibration(
                f"pack={pack} is given, and the samples are prompts and answers",
                where=[source.name],
                help="leave pack out, take pack=pad, or calibrate on documents",
            )
        size = samples, length
        found = _of_dialogues(source.dialogues, encode, size, seed, prefix, fill, isolate=isolate)
        _refuse_masks(found.clean, model, source.name)
    else:
        size, documents = (samples, length), source.documents
        if fill is not None:
            found = _padded(documents, encode, size, seed, prefix, fill)
        elif pack == "within":
            found = _within(documents, encode, size, seed, prefix)
        else:
            found = _joined(documents, encode, size, seed, prefix, isolate=isolate)
        _check_variety(found.use, source)
    data = found.clean if found.segments is None else found.clean[found.segments != PADDING]
    if not source.dialogues:
        _refuse_masks(data, model, source.name, documents=True)
    _check_tokens(data, encode, model, source.name)
    return found


def _of_rows(
    rows: Tensor, size: Size, seed: int, prefix: float, pack: Pack, *, isolate: bool
) -> Samples:
    """Rows stand alone, and are whole as they are."""
    if isolate or pack != "documents":
        raise InvalidCalibration(
            f"{'isolate' if isolate else f'pack={pack}'} is given, and the samples are token ids",
            where=[ROWS],
            help="leave it out: a row is never joined with another one",
        )
    (samples, length), (count, longest) = size, rows.shape
    clean = draw_rows(rows, samples, length, seed)
    use = TextUse(
        pack="rows",
        documents=count,
        tokens=rows.numel(),
        counted=True,
        used=min(count, samples),
        windows=samples,
        length=length,
        distinct=_distinct(clean),
        cut=0 if longest == length else min(count, samples),
    )
    return Samples(clean, behind_prefix(*size, prefix), use)


def _of_dialogues(
    dialogues: Sequence[Dialogue],
    encode: Encoder,
    size: Size,
    seed: int,
    prefix: float,
    fill: int | None,
    *,
    isolate: bool,
) -> Samples:
    samples, length = size
    clean, answers, counts, records = draw_dialogues(
        dialogues, encode.dialogue, samples, length, seed, fill
    )
    segments = records if isolate or fill is not None else None
    counted = counts.looked_at == len(dialogues)
    use = TextUse(
        pack="records" if fill is None else "pad",
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
        padding=int((records == PADDING).sum()),
        isolated=isolate,
    )
    return Samples(clean, answers & _behind(records != PADDING, prefix), use, segments)


def _joined(
    documents: Sequence[str], encode: Encode, size: Size, seed: int, prefix: float, *, isolate: bool
) -> Samples:
    (samples, length), joined = size, join(documents, encode)
    if isolate and joined.count < 2:
        raise InvalidCalibration(
            "isolate is given, which keeps documents apart, and there is one",
            help="leave isolate out",
        )
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
        isolated=isolate,
    )
    return Samples(clean, behind_prefix(*size, prefix), use, _runs(owners) if isolate else None)


def _behind(data: Tensor, prefix: float) -> Tensor:
    """Where there is a token, without the first share of those of each row."""
    visible = (prefix * data.sum(1, keepdim=True).double()).floor()
    return data & (torch.arange(data.shape[1]) >= visible)


def _runs(owners: Tensor) -> Tensor:
    """Number the documents of each window: one that comes back is another one."""
    begins = owners[:, 1:] != owners[:, :-1]
    return torch.cat((torch.zeros_like(owners[:, :1]), begins.long().cumsum(1)), 1)


def _padded(
    documents: Sequence[str], encode: Encode, size: Size, seed: int, prefix: float, fill: int
) -> Samples:
    samples, length = size
    found = draw_padded(documents, encode, samples, length, seed, fill)
    data = found.segments != PADDING
    maskable = _behind(data, prefix)
    characters = stored(documents).characters
    counted = found.looked_at == len(documents)
    use = TextUse(
        pack="pad",
        documents=len(documents),
        characters=characters,
        tokens=round(found.tokens * characters / max(1, found.characters)),
        counted=counted and found.characters == characters,
        used=len(set(found.owners)),
        windows=samples,
        length=length,
        distinct=_distinct(found.windows),
        looked_at=found.looked_at,
        unusable=found.empty,
        cut=found.cut,
        padding=int((~data).sum()),
    )
    return Samples(found.windows, maskable, use, found.segments)


def _within(
    documents: Sequence[str], encode: Encode, size: Size, seed: int, prefix: float
) -> Samples:
    samples, length = size
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
    return Samples(found.windows, behind_prefix(*size, prefix), use)


def _distinct(windows: Tensor) -> int:
    return len(torch.unique(windows, dim=0))


def _check_variety(use: TextUse, source: TextSource) -> None:
    needed = (use.windows + 1) // 2
    if use.distinct < needed:
        raise InvalidCalibration(
            f"found {use.documents} {use.kind} that give {use.distinct} different windows of "
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


def _refuse_masks(clean: Tensor, model: ModelFacts, name: str, *, documents: bool = False) -> None:
    """Refuse clean samples in which places look masked. Raises InvalidCalibration."""
    if model.mask_token_id is None:
        return
    count = int((clean == model.mask_token_id).sum())
    if not count:
        return
    what, help = "the dialogues or the chat template write", "leave the records that name it out"
    if name == ROWS:
        what, help = "the token ids hold", "give clean ids: qdc masks them itself"
    elif documents:
        what = "the text, or what the tokenizer puts around it, holds"
        help = "give the model's own mask_token_id: one that stands for no text and separates none"
    raise InvalidCalibration(f"{what} the mask token, {count} times", where=[name], help=help)
