"""Derivatives by the embedding, whatever stands between it and the first region."""

import pytest
import torch
from torch import Tensor, nn

from qdc.checkpoint.held import HeldModule
from qdc.frontend.given import GivenFacts, open_given
from qdc.passkit.beginning import embedding_slopes
from qdc.passkit.course import Batch, Course, pieces
from qdc.passkit.head import output_head
from qdc.streaming.original import original_weights
from qdc.streaming.stream import Stream
from tests.support.modules import LENGTH, MASK, VOCABULARY, WIDTH, Block, filled, ids

WAYS = ("as they are", "scaled", "normalized", "both", "beside a block")


class Small(nn.Module):
    """Two blocks, which read an embedding's rows in one way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.wte, self.norm = nn.Embedding(VOCABULARY, WIDTH), nn.LayerNorm(WIDTH)
        self.blocks = nn.ModuleList(Block(causal=False, manual=False) for _ in range(2))
        self.last, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.way = way

    def forward(self, input_ids: Tensor) -> Tensor:
        """``i64[B, L] -> [B, L, vocabulary]``."""
        rows = self.wte(input_ids)
        x = {
            "as they are": lambda: rows,
            "scaled": lambda: 3.0 * rows,
            "normalized": lambda: self.norm(rows),
            "both": lambda: rows + self.norm(rows),
            "beside a block": lambda: self.norm(rows),
        }[self.way]()
        for block in self.blocks:
            x = block(x)
        if self.way == "beside a block":
            x = x + rows
        found: Tensor = self.head(self.last(x))
        return found


@pytest.mark.parametrize("way", WAYS)
def test_they_are_those_of_the_whole_model(way: str) -> None:
    module = filled(Small(way))
    facts = GivenFacts(mask_token_id=MASK, max_length=LENGTH)
    held, program = open_given(module, HeldModule(module, None), facts)
    batches, device = [ids(2, LENGTH), ids(1, LENGTH, seed=1)], torch.device("cpu")
    read = original_weights(program, held, device)
    stream = Stream(program, batches, read, device)
    first, head = list(stream.kept), output_head(program.graph, "")
    way_there = list(pieces(stream, head))
    course = Course(stream.executor, stream.states, tuple(piece for piece, _ in way_there))
    slopes = [torch.randn(*batch.shape, WIDTH) for batch in batches]
    behind = [{head.value: slope} for slope in slopes]
    for piece, kept in reversed(way_there):
        parameters = {name: read(name) for name in piece.steps}
        for index, values in enumerate(kept):
            before = course.backward(Batch(values, None), piece, parameters, behind[index])
            behind[index], _ = before
    rows: list[Tensor] = []
    module.wte.register_forward_hook(lambda _, given, result: rows.append(result))
    (embedding,) = (n.name for n in program.graph.vocabulary() if n.op == "embedding")
    found = list(embedding_slopes(embedding, stream, course, first, behind, read))
    for batch, slope, each in zip(batches, slopes, found, strict=True):
        read_by: list[Tensor] = []
        module.head.register_forward_pre_hook(lambda _, given, seen=read_by: seen.append(given[0]))
        module(batch)
        (expected,) = torch.autograd.grad((read_by[0] * slope).sum(), rows[-1])
        torch.testing.assert_close(each[embedding], expected, rtol=1e-4, atol=1e-5)
