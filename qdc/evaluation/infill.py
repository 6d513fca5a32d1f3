"""Fill gaps in a text, most certain token first."""

from collections.abc import Callable

import torch
from torch import Tensor

from qdc.errors import QdcError
from qdc.models.predictions import Logits, logits_shift
from qdc.runtime.decoding.canvas import lay_out_gaps
from qdc.runtime.decoding.facts import DecodeFacts
from qdc.runtime.decoding.llada import LowConfidence
from qdc.runtime.decoding.loop import Loop
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.reader import Reader
from qdc.runtime.decoding.results import Snapshot, Watch
from qdc.text.surround import Surround
from qdc.units import Progress

GAP = "<mask>"


def parse_gaps(
    text: str, encode: Callable[[str], list[int]], mask_id: int, per_gap: int = 1
) -> tuple[Tensor, Tensor]:
    """Tokenise text in which ``<mask>`` stands for ``per_gap`` tokens to fill.

    Returns tokens ``i64[1, T]``, ``mask_id`` in the gaps, and the gaps ``bool[1, T]``. The pieces
    between gaps are tokenised one by one, as they stand; a mask token that is read in one, where
    special tokens are meant, is a gap of one token too.
    """
    if per_gap < 1:
        raise QdcError(f"found {per_gap} tokens per gap, need at least 1", help="1 is the default")
    first, *rest = text.split(GAP)
    tokens = list(encode(first))
    for piece in rest:
        tokens += [mask_id] * per_gap + (encode(piece) if piece else [])
    found = torch.tensor([tokens], dtype=torch.int64)
    masked = found == mask_id
    if not bool(masked.any()):
        raise QdcError(
            "found no gap to fill",
            help=f"write {GAP} where text is missing: for i {GAP} range(10):",
        )
    return found, masked


def enclose(tokens: Tensor, masked: Tensor, around: Surround) -> tuple[Tensor, Tensor]:
    """Put tokens around those of a text, ``i64[1, T]``, and none of them into a gap."""
    before, after = (torch.tensor([part], dtype=torch.int64) for part in around)
    none, never = (torch.zeros_like(part, dtype=torch.bool) for part in (before, after))
    return torch.cat([before, tokens, after], 1), torch.cat([none, masked, never], 1)


@torch.no_grad()
def infill(
    logits: Logits,
    tokens: Tensor,
    masked: Tensor,
    mask_id: int,
    steps: int | None = None,
    progress: Progress | None = None,
    block: int | None = None,
) -> Tensor:
    """Fill the places of ``masked``, ``bool[batch, T]``, in ``tokens``, ``i64[batch, T]``.

    Returns ``i64[batch, T]``. Each step predicts all open places greedily and keeps the most
    confident predictions of a text, the earlier place where two are equal; the others stay masked.
    ``steps`` share the places evenly, the first steps take what is left over; ``None`` fills one
    place a step, and so do more steps than places. The mask itself is never predicted. With the
    ``block`` of a model whose positions do not see later blocks, a block is filled before the next
    one is begun, and takes its share of the steps, at least one; every text is computed for the
    blocks of all, so those are best taken together that have gaps in the same ones. Source: LLaDA's
    low-confidence remasking at temperature 0; confidence is a probability in float64.
    """
    if tokens.ndim != 2 or masked.shape != tokens.shape:
        raise QdcError(
            f"found tokens of shape {list(tokens.shape)} and gaps of shape {list(masked.shape)}, "
            "need [texts, length] for both",
            help="give every token a place in masked",
        )
    if steps is not None and steps < 1:
        raise QdcError(f"found {steps} steps, need at least 1", help="leave steps out for the best")
    options = DecodeOptions(steps=None if steps is None else min(steps, max(1, tokens.shape[1])))
    facts = DecodeFacts(
        mask_token_id=mask_id,
        vocabulary=max(mask_id, int(tokens.max())) + 1 if tokens.numel() else 1,
        max_length=max(1, tokens.shape[1]),
        logits_shift=logits_shift(logits),
    )
    canvas = lay_out_gaps(tokens.cpu(), masked.cpu(), block, mask_id, (0,) * len(tokens))
    reader = Reader(logits, canvas, facts, options.cache, options.cfg)
    loop = Loop(reader, LowConfidence(), options, facts, stops=False)
    loop.run(None if progress is None else _tell(progress))
    return canvas.tokens.to(tokens.device)


def _tell(progress: Progress) -> Watch:
    def watch(state: Snapshot) -> None:
        progress(state.step, state.steps or state.step)

    return watch
