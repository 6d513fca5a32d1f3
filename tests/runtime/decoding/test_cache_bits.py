"""Keys and values kept as codes: what is read back, how much is held, what is refused."""

import pytest
import torch
from torch import Tensor

from qdc.errors import QdcError
from qdc.models.kept import AsCodes, AsComputed, kept
from qdc.numerics.rowquantizer import Bits, RowQuantizer
from qdc.runtime.decoding.canvas import lay_out
from qdc.runtime.decoding.loop import decode
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.reader import Reader
from tests.runtime.decoding.test_models import PROMPTS, answers, toy
from tests.support.families import CASES


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_head_of_each_token_has_a_grid_of_its_own(bits: Bits, dtype: torch.dtype) -> None:
    values = (noise(3, 5, 2, 7) * torch.tensor([1e-3, 50.0])[:, None]).to(dtype)
    held = kept(values, 9, bits)
    assert isinstance(held, AsCodes)
    held.write(slice(None), 2, values)
    found = held.read(8)
    assert found.dtype == dtype
    assert not found[:, :2].any()
    expected = RowQuantizer(bits, scales="f16").round(values.float()).to(dtype)
    assert torch.equal(found[:, 2:7], expected)
    for head in range(2):
        error = (found[:, 2:7, head] - values[:, :, head]).abs().max()
        assert 0 < error < values[:, :, head].abs().max() / (100 if bits == 8 else 6)


def test_rows_are_written_and_left_out_alone() -> None:
    values = noise(3, 4, 2, 8)
    for held in (AsComputed(values, 4), AsCodes(values, 4, 8)):
        held.write(slice(None), 0, values)
        before = held.read(4).clone()
        held.write(torch.tensor([False, True, False]), 1, -values[:, 1:3])
        after = held.read(4)
        torch.testing.assert_close(after[1, 1:3], -before[1, 1:3])
        assert torch.equal(after[[0, 2]], before[[0, 2]])
        held.keep_rows(torch.tensor([True, False, True]))
        assert torch.equal(held.read(4), before[[0, 2]])


@pytest.mark.parametrize(("bits", "most"), [(8, 0.02), (4, 0.4)])
@pytest.mark.parametrize(("family", "cache"), [("llada", "dual"), ("sdar", "prefix")])
def test_logits_move_by_what_the_codes_round(
    family: str, cache: str, bits: int, most: float
) -> None:
    model, facts = toy(family)
    canvases = [lay_out(PROMPTS, 12, 4, facts, [0] * len(PROMPTS)) for _ in range(2)]
    readers = [
        Reader(model, canvas, facts, cache, 0.0, each)
        for canvas, each in zip(canvases, (None, bits), strict=True)
    ]
    first, last = canvases[0].spans[0]
    rows, columns = canvases[0].masked[:, first:last].nonzero(as_tuple=True)
    for reader in readers:
        reader.begin(first, last)
    plain, coded = (reader.read(rows, columns + first) for reader in readers)
    assert torch.equal(plain, coded), "what a call computes itself it sees as computed"
    plain, coded = (reader.read(rows, columns + first) for reader in readers)
    moved = float((coded - plain).norm() / plain.norm())
    assert 1e-6 < moved < most


@pytest.mark.parametrize("family", ["llada", "dream", "fast-dllm"])
def test_a_batch_gives_what_each_prompt_gives_alone(family: str) -> None:
    model, facts = toy(family)
    fields = {"cache": "dual", "cache_bits": 4, "block": 4, "temperature": 0.5, "cfg": 0.3}
    together = answers(model, facts, PROMPTS, **fields)
    assert together == [answers(model, facts, [prompt], **fields)[0] for prompt in PROMPTS]


def test_bytes_are_counted() -> None:
    model, facts = toy("llada")
    config = CASES["llada"].config
    heads, width = config["n_heads"], config["d_model"] // config["n_heads"]
    tokens = 2 * 2 * len(PROMPTS) * (9 + 12)
    found = {}
    for bits in (None, 8, 4):
        options = DecodeOptions(length=12, cache="dual", cache_bits=bits, block=4)
        found[bits] = decode(model, PROMPTS, options, facts)
    assert found[None].cache_bytes == found[None].cache_plain_bytes == tokens * heads * 4 * width
    for bits in (8, 4):
        assert found[bits].cache_plain_bytes == found[None].cache_bytes
        assert found[bits].cache_bytes == tokens * heads * (-(-width * bits // 8) + 2)
    options = DecodeOptions(length=12, block=4)
    assert decode(model, PROMPTS, options, facts).cache_bytes == 0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"cache_bits": 8}, "cache_bits has no effect without a cache"),
        ({"cache_bits": 3, "cache": "dual"}, "give 8 or 4"),
        ({"cache_bits": 8, "strategy": "threshold"}, "cache_bits has no effect without a cache"),
    ],
)
def test_what_would_do_nothing_is_refused(given: dict[str, object], expected: str) -> None:
    model, facts = toy("llada")
    with pytest.raises(QdcError) as caught:
        decode(model, PROMPTS, DecodeOptions.parse(length=4, **given), facts)
    assert expected in str(caught.value)
