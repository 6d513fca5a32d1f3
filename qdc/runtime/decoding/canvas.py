"""Where prompts and answers of a batch stand, and the spans of columns that are filled in turn.

Rows are padded on the left and the padding is hidden, so answers share columns. In a block-causal
model blocks are counted from the start of a row: there rows are padded by whole blocks, so that the
blocks share columns, and what is left on the right is hidden too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qdc.errors import QdcError
from qdc.runtime.decoding.facts import DecodeFacts


@dataclass
class Canvas:
    """The state of a batch; ``tokens`` and ``masked`` change while it is filled. All on the CPU."""

    tokens: Tensor
    """``i64[batch, T]``; the mask token where nothing is decided."""
    masked: Tensor
    """``bool[batch, T]``: not decided yet."""
    visible: Tensor
    """``bool[batch, T]``: no padding."""
    positions: Tensor
    """``i64[batch, T]``: of a column in its row, 0 in front of it."""
    seeds: list[int]
    """Of each row."""
    spans: list[tuple[int, int]]
    """First column and end of each block, in the order in which they are filled."""
    starts: Tensor
    """``i64[batch]``: column of the first token of each row."""
    ends: Tensor
    """``i64[batch]``: column behind the last token of each row."""

    def shown(self) -> tuple[Tensor, Tensor]:
        """Tokens and what is masked, ``[batch, longest row]``, rows ending in the last column."""
        width = int((self.ends - self.starts).max())
        column = torch.arange(width)[None] + self.ends[:, None] - width
        inside = column >= self.starts[:, None]
        column = torch.where(inside, column, 0)
        tokens = torch.where(inside, self.tokens.gather(1, column), self.tokens[:, :1])
        return tokens, self.masked.gather(1, column) & inside


def lay_out(
    prompts: Sequence[Sequence[int]],
    length: int,
    block: int | None,
    facts: DecodeFacts,
    seeds: Sequence[int],
) -> Canvas:
    """Put ``length`` masked places behind each prompt.

    Raises ``QdcError`` for no prompt, one that is too long, and a block that does not fit.
    """
    check_prompts(prompts, length, facts)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    grid = facts.attention_block
    if grid is None:
        starts = lengths.max() - lengths
        begin, size = int(lengths.max()), min(block or length, length)
    else:
        number = lengths // grid
        starts = (number.max() - number) * grid
        begin, size = int(number.max()) * grid, block_size(block, grid) or grid
    ends = starts + lengths + length
    column = torch.arange(int(ends.max()))[None]
    visible = (column >= starts[:, None]) & (column < ends[:, None])
    masked = visible & (column >= (starts + lengths)[:, None])
    tokens = torch.full(masked.shape, facts.mask if facts.eos is None else facts.eos)
    for row, prompt in enumerate(prompts):
        start = int(starts[row])
        tokens[row, start : start + len(prompt)] = torch.tensor(list(prompt), dtype=torch.int64)
    spans = [
        (first, min(first + size, column.shape[1])) for first in range(begin, column.shape[1], size)
    ]
    return Canvas(
        tokens=tokens.masked_fill(masked, facts.mask),
        masked=masked,
        visible=visible,
        positions=(column - starts[:, None]).clamp(min=0),
        seeds=list(seeds),
        spans=[span for span in spans if bool(masked[:, slice(*span)].any())],
        starts=starts,
        ends=ends,
    )


def lay_out_gaps(
    tokens: Tensor, masked: Tensor, block: int | None, mask: int, seeds: Sequence[int] = (0,)
) -> Canvas:
    """Take texts ``i64[batch, T]`` with places to fill, ``bool[batch, T]``, block by block."""
    rows, length = tokens.shape
    size = block or max(1, length)
    spans = [(first, min(first + size, length)) for first in range(0, length, size)]
    return Canvas(
        tokens=tokens.masked_fill(masked, mask),
        masked=masked.clone(),
        visible=torch.ones_like(masked),
        positions=torch.arange(length).expand(rows, -1),
        seeds=list(seeds),
        spans=[span for span in spans if bool(masked[:, slice(*span)].any())],
        starts=torch.zeros(rows, dtype=torch.int64),
        ends=torch.full((rows,), length),
    )


def block_size(block: int | None, grid: int | None) -> int | None:
    """The block that was asked for, or that of the model's attention; None for one of all.

    Raises ``QdcError`` for a block that does not divide the model's.
    """
    if grid is not None and grid % (block or grid):
        raise QdcError(
            f"blocks of {block} do not divide the model's attention blocks of {grid}",
            help=f"take a block that divides {grid}, or leave it out",
        )
    return block or grid


def check_prompts(
    prompts: Sequence[Sequence[int]], length: int, facts: DecodeFacts, why: str = ""
) -> None:
    """Refuse prompts that the model cannot read, or not with an answer of ``length`` tokens.

    ``why`` is said behind that length. Raises ``QdcError``.
    """
    if not prompts:
        raise QdcError("found no prompt", help="give one prompt or more")
    longest = max(map(len, prompts))
    if longest + length > facts.max_length:
        raise QdcError(
            f"a prompt of {longest} tokens and an answer of {length}{why} are {longest + length}, "
            f"the model takes {facts.max_length}",
            help="shorten the prompt or the answer",
        )
    outside = [token for prompt in prompts for token in prompt if not 0 <= token < facts.vocabulary]
    if outside:
        raise QdcError(
            f"found token {outside[0]}, and the model knows {facts.vocabulary} tokens",
            help="use the tokenizer of this model",
        )
