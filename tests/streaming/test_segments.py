"""Padding and documents of one window: every stage reads what it reads of each document alone."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from qdc.checkpoint.folder import Checkpoint
from qdc.errors import UnsupportedModel
from qdc.frontend.calls import _narrowed
from qdc.frontend.opening import open_model
from qdc.frontend.tracer import Program
from qdc.ir.routing import rows_of
from qdc.numerics.moment import MomentAccumulator
from qdc.passkit.experts import read, tokens_of
from qdc.passkit.head import sources_within
from qdc.passkit.padding import pad
from qdc.runtime.load import load_checkpoint
from qdc.streaming.apart import require_apart
from qdc.streaming.batches import PADDING, Batches, Sight
from qdc.streaming.original import original_stream
from qdc.streaming.states import StateStore
from qdc.streaming.stream import Stream
from tests.frontend.toys import Block, Toy, traced
from tests.support.checkpoints import MASK
from tests.support.families import CASES, write_family
from tests.support.natives import write_native

DEVICE = torch.device("cpu")
LENGTH, SIZES = 24, (9, 24, 1, 17, 12)
FAMILIES, NATIVES = ("dream", "sdar", "sdar-moe"), ("bert", "modernbert", "qwen3-moe")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def find(kind: str) -> Path:
        if kind not in made:
            path = tmp_path_factory.mktemp("segments") / kind
            if kind in NATIVES:
                made[kind] = write_native(path, kind)
            else:
                made[kind] = write_family(path, CASES[kind], dtype=torch.float32)
        return made[kind]

    return find


def documents() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    found = [torch.randint(2, 60, (size,), generator=generator) for size in SIZES]
    return [ids.masked_fill(torch.rand(len(ids), generator=generator) < 0.3, MASK) for ids in found]


def padded(fill: int = 0, size: int = 2) -> Batches:
    tokens, segments = pad([ids.tolist() for ids in documents()], LENGTH, fill)
    return Batches.split(tokens, segments, size)


@lru_cache
def opened(folder: Path) -> tuple[Checkpoint, Program]:
    """An export takes seconds."""
    return open_model(folder)


def stream_of(folder: Path, batches: Batches | list[Tensor]) -> Stream:
    checkpoint, program = opened(folder)
    return original_stream(program, checkpoint, batches, DEVICE, states=StateStore(torch.float32))


@pytest.mark.parametrize("kind", [*FAMILIES, *NATIVES])
def test_padded_rows_read_what_documents_read_alone(
    kind: str, folder: Callable[[str], Path]
) -> None:
    together = stream_of(folder(kind), padded())
    alone = [stream_of(folder(kind), [ids[None]]) for ids in documents()]
    require_apart_of(together)
    for region in together.graph.regions:
        for stage in together.graph.waves[region.name].each():
            for stream in (together, *alone):
                stream.enter(stage)
            columns = together.graph[stage.layers[0]].columns
            found, expected = MomentAccumulator(columns), MomentAccumulator(columns)
            for part in read(together, stage, together.masked):
                found.add(part.value)
                assert part.facts.shape == part.value.shape[:-1]
            for each in alone:
                for part in read(each, stage, each.masked):
                    expected.add(part.value)
            assert found.tokens == expected.tokens
            value, counts = stage.value, [tokens_of(each, [stage]) for each in alone]
            due = tuple(map(sum, zip(*(count[value] for count in counts), strict=True)))
            assert tokens_of(together, [stage]) == {value: due}
            assert sum(map(len, together.values(stage))) == found.tokens
            if found.tokens:
                torch.testing.assert_close(found.value(), expected.value())
        for stream in (together, *alone):
            stream.leave(region)


def require_apart_of(stream: Stream) -> None:
    """The check by which a compile would refuse the model lets it pass."""
    require_apart(stream.executor.program, isolate=False)


def test_pooled_experts_are_fed_with_all_tokens_but_padding(
    folder: Callable[[str], Path],
) -> None:
    stream = stream_of(folder("sdar-moe"), padded())
    stages = [s for r in stream.graph.regions for s in r.stages]
    stage = next(s for s in stages if rows_of(stream.graph, s.value))
    stream.enter(stage)
    parts = list(read(stream, stage, stream.masked, pooled=True))
    assert sum(len(part.value) for part in parts) == sum(SIZES)
    assert sum(int(part.facts.sum()) for part in parts) == int(stream.masked.sum())


@pytest.mark.parametrize("kind", ["dream", "qwen3-moe"])
def test_the_token_behind_documents_changes_no_bit(
    kind: str, folder: Callable[[str], Path]
) -> None:
    first, second = (stream_of(folder(kind), padded(fill)) for fill in (0, 37))
    for region in first.graph.regions:
        for stage in first.graph.waves[region.name].each():
            pairs = []
            for stream in (first, second):
                stream.enter(stage)
                pairs.append(torch.cat(list(stream.values(stage))))
            assert torch.equal(*pairs)


def test_a_batch_that_does_not_fit_is_split_with_its_segments(
    folder: Callable[[str], Path],
) -> None:
    whole, halved = (stream_of(folder("sdar-moe"), padded(size=5)) for _ in range(2))
    halved.executor.most = 2
    stage = whole.graph.regions[-1].stages[0]
    found = []
    for stream in (whole, halved):
        stream.enter(stage)
        found.append(torch.cat(list(stream.values(stage))))
    torch.testing.assert_close(*found)


def several() -> Batches:
    """Two windows of documents that do not see each other."""
    generator = torch.Generator().manual_seed(6)
    tokens = torch.randint(2, 60, (2, LENGTH), generator=generator)
    segments = torch.tensor([[0] * 5 + [1] * 12 + [2] * 7, [0] * 14 + [1] * 10])
    return Batches([tokens], [segments])


@pytest.mark.parametrize("kind", ["dream", "bert", "modernbert", "qwen3-moe"])
def test_documents_of_one_window_do_not_see_each_other(
    kind: str, folder: Callable[[str], Path]
) -> None:
    batches = several()
    (tokens,), (segments,) = batches, batches.segments or ()
    stream = stream_of(folder(kind), batches)
    require_apart(stream.executor.program, isolate=True)
    plain = load_checkpoint(folder(kind), "cpu", torch.float32)
    head = list(stream.graph)[-1].name
    (found,) = (values[head] for values in stream.compute((head,)))
    if kind == "dream":
        same = (segments[:, :, None] == segments[:, None, :])[:, None]
        torch.testing.assert_close(found, plain(tokens, same))
    first = plain(tokens[1:, :14])
    torch.testing.assert_close(found[1:, :14], first, msg="as alone, for it begins at place 0")
    for number in range(3):
        others = tokens.where(segments == number, (tokens + 7) % 60)
        (changed,) = (
            values[head]
            for values in stream_of(folder(kind), Batches([others], [segments])).compute((head,))
        )
        here = segments == number
        # Of another number of tokens an expert's products may be summed up in another order.
        close = 1e-5 if "moe" in kind else 0.0
        torch.testing.assert_close(changed[here], found[here], rtol=close, atol=close)


class Mean(Block):
    """Adds the mean of all positions."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden) + hidden.mean(1, keepdim=True)


class Softmax(Block):
    """Attends without an attention that takes a mask."""

    def forward(self, hidden: Tensor) -> Tensor:
        scores = torch.softmax(hidden @ hidden.transpose(1, 2), -1)
        return super().forward(scores @ hidden)


class Shifted(Block):
    """Reads the position before: what is behind a document does not reach into it."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden + hidden.roll(1, 1).cumsum(1))


@pytest.mark.parametrize(
    ("block", "pads", "isolates"),
    [(Block, True, True), (Mean, False, False), (Softmax, False, False), (Shifted, False, False)],
)
def test_a_model_that_mixes_positions_elsewhere_is_refused(
    block: type[Block], pads: bool, isolates: bool
) -> None:
    program = traced(lambda: Toy([block(), block()]))
    for isolate, good in ((False, pads), (True, isolates)):
        if good:
            require_apart(program, isolate=isolate)
            continue
        with pytest.raises(UnsupportedModel, match="elsewhere than in an attention") as caught:
            require_apart(program, isolate=isolate)
        assert caught.value.where
        assert "pack=documents" in str(caught.value.help)


def test_blocks_of_attention_are_not_cut_by_documents(folder: Callable[[str], Path]) -> None:
    _, program = opened(folder("sdar"))
    require_apart(program, isolate=False)
    with pytest.raises(UnsupportedModel, match="goes by blocks"):
        require_apart(program, isolate=True)


def test_slices_of_batches_keep_their_segments() -> None:
    batches = padded()
    assert batches.segments is not None
    assert batches[1:].segments == batches.segments[1:]
    joined = batches[:1] + batches[1:]
    assert joined.tokens == batches.tokens
    assert joined.segments == batches.segments
    assert [int((part == PADDING).sum()) for part in batches.segments] == [15, 30, 12]


def test_first_tokens_of_segments_are_predicted_as_alone() -> None:
    """Where position i predicts token i + 1, no segment reads the end of the one before it."""
    segments = torch.tensor([[0, 0, 1, 1, 2], [0, 1, 1, 1, PADDING]])
    rows, places = torch.ones(2, 5).nonzero(as_tuple=True)
    found = sources_within(rows, places, 1, segments).view(2, 5)
    assert found.tolist() == [[0, 0, 2, 2, 4], [0, 1, 1, 2, 4]]
    assert sources_within(rows, places, 1, None).view(2, 5).tolist() == [[0, 0, 1, 2, 3]] * 2
    assert torch.equal(sources_within(rows, places, 0, segments), places)


def test_a_causal_attention_stays_causal_within_segments() -> None:
    """In every kernel: not each of them takes the flag beside a mask."""
    attention = torch.ops.aten.scaled_dot_product_attention.default
    query, key, value = torch.randn(3, 1, 1, 4, 8, generator=torch.Generator().manual_seed(0))
    same = Sight(torch.tensor([[0, 0, 1, 1]])).same
    arguments, keywords = _narrowed((query, key, value, None, 0.0, True), {}, same)
    with sdpa_kernel(SDPBackend.MATH):
        found = attention(*arguments, **keywords)
    wanted = attention(query, key, value, same & torch.ones(4, 4).tril().bool())
    assert torch.allclose(found, wanted, atol=1e-6)
    arguments, keywords = _narrowed((query, key, value), {"is_causal": True}, same)
    assert torch.allclose(attention(*arguments, **keywords), wanted, atol=1e-6)
