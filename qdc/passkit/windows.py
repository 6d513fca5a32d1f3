"""Clean samples for calibration: random windows of long documents."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qdc.errors import InvalidCalibration
from qdc.units import Progress


def draw_windows(
    documents: Sequence[str],
    encode: Callable[[str], list[int]],
    samples: int,
    length: int,
    seed: int,
    progress: Progress | None = None,
) -> Tensor:
    """Draw ``i64[samples, length]`` token ids: a uniform document, then a uniform window of it.

    Only documents with more than ``length`` tokens count. Too short ones are rejected as they are
    drawn, which leaves the choice uniform over the others; a document is tokenised when first drawn
    and never again. Source: calibration text of the release (specification 1.4), whose generator
    is not ours; ours is torch's CPU generator. Raises InvalidCalibration if nothing is long enough.
    """
    if samples < 1 or length < 1:
        raise InvalidCalibration(
            f"found {samples} samples of {length} tokens, need at least 1 of 1",
            help="raise the number of samples or their length",
        )
    generator = torch.Generator().manual_seed(seed)
    places = list(range(len(documents)))
    known: dict[int, Tensor] = {}
    longest = 0
    windows: list[Tensor] = []
    while len(windows) < samples:
        if not places:
            if not longest and any(document.strip() for document in documents):
                raise _no_token(documents)
            raise _too_short(len(documents), longest, length)
        drawn = _below(len(places), generator)
        place = places[drawn]
        if place not in known:
            tokens = encode(documents[place])
            if len(tokens) <= length:
                longest = max(longest, len(tokens))
                places[drawn] = places[-1]
                places.pop()
                continue
            known[place] = torch.tensor(tokens, dtype=torch.int64)
        offset = _below(len(known[place]) - length + 1, generator)
        windows.append(known[place][offset : offset + length])
        if progress is not None:
            progress(len(windows), samples)
    return torch.stack(windows)


def draw_rows(rows: Tensor, samples: int, length: int, seed: int) -> Tensor:
    """Draw ``i64[samples, length]`` from rows of ids ``i64[n, longest]``, each as often as another.

    Of longer rows a uniform window. Raises InvalidCalibration if the rows are shorter.
    """
    count, longest = rows.shape
    if longest < length:
        raise InvalidCalibration(
            f"found rows of {longest} token ids, need {length} for a sample",
            help=f"give longer rows, or length={longest}",
        )
    generator = torch.Generator().manual_seed(seed)
    rounds = [torch.randperm(count, generator=generator) for _ in range(-(-samples // count))]
    windows = []
    for place in torch.cat(rounds)[:samples].tolist():
        offset = _below(longest - length + 1, generator)
        windows.append(rows[place, offset : offset + length])
    return torch.stack(windows)


def _below(bound: int, generator: torch.Generator) -> int:
    return int(torch.randint(bound, (), generator=generator))


def _no_token(documents: Sequence[str]) -> InvalidCalibration:
    return InvalidCalibration(
        f"found no token in {len(documents)} documents of {sum(map(len, documents))} characters",
        help="give text that the tokenizer of this model knows",
    )


def _too_short(documents: int, longest: int, length: int) -> InvalidCalibration:
    return InvalidCalibration(
        f"found {documents} documents, the longest of {longest} tokens, "
        f"need one of at least {length + 1} tokens",
        help="give longer text with --calibration, or a smaller length",
    )
