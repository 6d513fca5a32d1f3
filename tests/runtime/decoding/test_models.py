"""Decoding with real modules of every family: batches, padding, caches, traced modules."""

from copy import deepcopy
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from qdc.frontend.native import NativeModel
from qdc.frontend.tracer import LeafTracer
from qdc.ir.facts import ModelFacts
from qdc.models.families import BUILT_IN
from qdc.models.layers import Attention, takes_windows
from qdc.runtime.decoding.facts import DecodeFacts
from qdc.runtime.decoding.loop import decode
from qdc.runtime.decoding.options import CACHES, DecodeOptions
from qdc.runtime.decoding.results import Snapshot
from qdc.runtime.load import load_checkpoint
from tests.support.decoding import OF_MASKS
from tests.support.families import CASES
from tests.support.natives import write_native
from tests.support.threads import one_thread

__all__ = ["one_thread"]

PROMPTS = [[7, 8, 9, 10, 11, 12], [20], [30, 31, 32], [50, 51], [40] * 9]
WORDS = 61
FULL = ("llada", "dream", "llada-moe")
CAUSAL = ("sdar", "fast-dllm")


@cache
def toy(family: str, layers: int = 2) -> tuple[nn.Module, DecodeFacts]:
    """A random model with a small vocabulary."""
    depth = "n_layers" if family == "llada" else "num_hidden_layers"
    sizes = {"vocab_size": WORDS, depth: layers}
    if family == "llada":
        sizes["embedding_size"] = WORDS
    module, facts = BUILT_IN.build({**CASES[family].config, **sizes})
    module.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 2 * noise / parameter.shape[-1] ** 0.5 if noise.ndim > 1 else 1 + noise / 9
    return module, _facts(facts)


def _facts(facts: ModelFacts) -> DecodeFacts:
    return DecodeFacts.of(facts, 0, (0,))


def answers(model: nn.Module, facts: DecodeFacts, prompts: list[list[int]], **fields: Any) -> Any:
    options = DecodeOptions.model_validate({"length": 12, **fields})
    return decode(model, prompts, options, facts).answers


@pytest.mark.parametrize("kept", CACHES)
@pytest.mark.parametrize("family", [*FULL, *CAUSAL])
def test_a_batch_gives_what_each_prompt_gives_alone(family: str, kept: str) -> None:
    model, facts = toy(family)
    fields = {"cache": kept, "block": 4, "temperature": 0.5, "cfg": 0.3, "steps": 6}
    together = answers(model, facts, PROMPTS, **fields)
    assert together == [answers(model, facts, [prompt], **fields)[0] for prompt in PROMPTS]
    assert len({*map(tuple, together)}) == len(PROMPTS)


@pytest.mark.parametrize("family", ["dream", "fast-dllm"])
@pytest.mark.parametrize("strategy", ["threshold", "factor", "entropy", "origin", "dynamic"])
def test_rows_that_take_different_steps_do_not_disturb_each_other(
    family: str, strategy: str
) -> None:
    """In Fast-dLLM v2 rows differ in when the first place of a part of a block is decided."""
    model, facts = toy(family)
    fields = {"strategy": strategy, "cache": "dual", "block": 4, "temperature": 0.3}
    if strategy in ("threshold", "dynamic"):
        fields["threshold"] = 0.3
    together = answers(model, facts, PROMPTS, **fields)
    assert together == [answers(model, facts, [prompt], **fields)[0] for prompt in PROMPTS]


@pytest.mark.parametrize("kept", ["prefix", "dual"])
@pytest.mark.parametrize("family", FULL)
def test_caches_are_exact_in_a_model_of_one_layer(family: str, kept: str) -> None:
    """There keys and values follow from their own token alone, so nothing kept is out of date.

    Dream decides first places alone with a cache, so its order differs; from left to right with two
    steps for two places it is the same.
    """
    model, facts = toy(family, 1)
    fields: dict[str, Any] = {"block": 4, "steps": 6}
    if family == "dream":
        fields = {"block": 2, "strategy": "sequential"}
    assert answers(model, facts, PROMPTS, cache=kept, **fields) == answers(
        model, facts, PROMPTS, **fields
    )


def test_the_first_place_of_a_block_goes_alone() -> None:
    """On Dream with a cache; it is one of the steps, and one step in all has no room for it."""
    model, facts = toy("dream")
    for kept, steps, first in (("none", 6, 2), ("dual", 6, 1), ("dual", 12, 1), ("dual", 3, 4)):
        seen: list[Snapshot] = []
        options = DecodeOptions.parse(length=12, block=4, steps=steps, cache=kept, stop_early=False)
        decode(model, PROMPTS, options, facts, seen.append)
        assert (~seen[0].masked[:, -12:]).sum(1).tolist() == [first] * len(PROMPTS)
        if first == 1:
            assert not seen[0].masked[:, -12].any()
        assert len(seen) == steps == seen[0].steps


def test_an_attention_block_is_begun_by_the_block_before_it() -> None:
    """In Fast-dLLM v2 the rows of a batch that begin a block have its first place decided alone."""
    model, facts = toy("fast-dllm")
    size = 8
    assert facts.attention_block == size
    prompts = [[7] * size, [7] * (size + 1), [7] * (size - 1)]
    seen: list[Snapshot] = []
    options = DecodeOptions(length=size, strategy="threshold", threshold=0.0)
    decode(model, prompts, options, facts, seen.append)
    written = [(~state.masked[:, -size:]).sum(1).tolist() for state in seen]
    # At the threshold 0 a step decides all that it may: the first row begins a block at once, the
    # others after 7 places and after one.
    assert written == [[1, 7, 1], [8, 7, 1], [8, 8, 2], [8, 8, 8]]


@pytest.mark.parametrize("family", FULL)
def test_caches_are_approximations_in_deeper_models(family: str) -> None:
    model, facts = toy(family)
    found = {kept: answers(model, facts, PROMPTS, cache=kept, block=4) for kept in CACHES}
    assert len({str(found[kept]) for kept in CACHES}) == 3


@pytest.mark.parametrize("kept", ["prefix", "dual"])
@pytest.mark.parametrize("family", CAUSAL)
def test_finished_blocks_are_kept_exactly(family: str, kept: str) -> None:
    """Nothing of a block-causal model changes when later blocks are written."""
    model, facts = toy(family)
    assert answers(model, facts, PROMPTS, cache=kept) == answers(model, facts, PROMPTS)


def test_a_part_of_a_block_is_exact_with_the_prefix_alone() -> None:
    model, facts = toy("fast-dllm")
    plain = answers(model, facts, PROMPTS, block=4)
    assert answers(model, facts, PROMPTS, block=4, cache="prefix") == plain
    assert answers(model, facts, PROMPTS, block=4, cache="dual") != plain


@pytest.mark.parametrize(
    ("family", "kept", "widths"),
    [
        ("llada", "none", [14] * 6),
        ("llada", "prefix", [14, 12, 14, 8, 14, 4]),
        ("llada", "dual", [14, 4, 14, 4, 14, 4]),
        ("dream", "dual", [14, 4, 14, 4, 14, 4]),
        ("dream", "prefix", [14, 12, 14, 8, 14, 4]),
        # Blocks of 4 from the first position: 2 places of the prompt, 2 + 4 + 4 + 2 open ones.
        ("sdar", "none", [4, 8, 8, 12, 12, 14]),
        ("sdar", "prefix", [4, 8, 4, 8, 4, 6]),
    ],
)
def test_what_a_cache_computes(family: str, kept: str, widths: list[int]) -> None:
    """Columns of each call; two steps a block, fewer where a block has a share of one."""
    model, facts = toy(family)
    found: list[int] = []
    embedding = next(module for module in model.modules() if isinstance(module, nn.Embedding))
    hook = embedding.register_forward_hook(
        lambda module, given, out: found.append(given[0].shape[1])
    )
    try:
        answers(model, facts, [[7, 8]], cache=kept, block=4, steps=6, stop_early=False)
    finally:
        hook.remove()
    assert found == widths


def test_no_window_is_left_behind() -> None:
    """After an interruption in the middle, the model computes whole texts again."""
    model, facts = toy("llada")
    tokens = torch.randint(0, WORDS, (2, 9), generator=torch.Generator().manual_seed(0))
    before = model(tokens)

    class Stop(Exception):
        pass

    def watch(state: object) -> None:
        raise Stop

    options = DecodeOptions(length=8, cache="dual")
    with pytest.raises(Stop):
        decode(model, PROMPTS, options, facts, watch)
    assert torch.equal(model(tokens), before)


def test_a_traced_module_takes_the_same_caches() -> None:
    model, facts = toy("dream")
    traced = fx.GraphModule(model, LeafTracer().trace(model))
    leaves = [leaf for leaf in traced.modules() if isinstance(leaf, Attention)]
    assert leaves == [leaf for leaf in model.modules() if isinstance(leaf, Attention)]
    for kept in CACHES:
        fields = {"cache": kept, "block": 4}
        assert answers(traced, facts, PROMPTS, **fields) == answers(model, facts, PROMPTS, **fields)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_classes_of_transformers_decode_in_batches(tmp_path: Path, kind: str) -> None:
    """BERT adds embeddings of absolute positions: there padding must stand behind the text."""
    folder = write_native(tmp_path / kind, kind)
    model = load_checkpoint(folder, "cpu", torch.float32)
    assert isinstance(model, NativeModel)
    facts = DecodeFacts(mask_token_id=1, vocabulary=2048, eos=0, ends=(0,), max_length=40)
    together = answers(model, facts, PROMPTS, cfg=0.5)
    assert together == [answers(model, facts, [prompt], cfg=0.5)[0] for prompt in PROMPTS]


@torch.no_grad()
def test_each_step_is_what_the_whole_model_says() -> None:
    """Greedy and one token a step, against a loop over the plain module, for shifted logits."""
    model, facts = toy("dream")
    (found,) = answers(model, facts, [[7, 8]], strategy="low-confidence", stop_early=False)
    tokens = torch.tensor([[7, 8] + [1] * 12])
    left = list(range(2, 14))
    while left:
        logits: Tensor = model(tokens)[0, [place - 1 for place in left]].double()
        logits[:, 1] = -torch.inf
        sure, best = logits.softmax(1).max(1)
        pick = int(sure.argmax())
        tokens[0, left[pick]] = best[pick]
        del left[pick]
    answer = tokens[0, 2:].tolist()
    assert found == (answer[: answer.index(0)] if 0 in answer else answer)


@settings(max_examples=25)
@given(data=st.data())
def test_whatever_is_asked_all_is_filled_and_nothing_else_changes(data: st.DataObject) -> None:
    model, facts = toy(data.draw(st.sampled_from([*FULL, *CAUSAL])))
    prompt = st.lists(st.integers(2, WORDS - 1), min_size=0, max_size=7)
    prompts = data.draw(st.lists(prompt, min_size=1, max_size=3))
    strategy = data.draw(st.sampled_from(OF_MASKS))
    fields = {
        "strategy": strategy,
        "length": data.draw(st.integers(1, 13)),
        "block": data.draw(st.sampled_from([None, 1, 2, 4])),
        "cache": data.draw(st.sampled_from(CACHES)),
        "temperature": data.draw(st.sampled_from([0.0, 1.0])),
        "stop_early": data.draw(st.booleans()),
    }
    if strategy not in ("threshold", "factor"):
        fields["steps"] = data.draw(st.sampled_from([None, 1, 3, 40]))
    seen: list[Snapshot] = []
    options = DecodeOptions.model_validate(fields)
    found = decode(model, prompts, options, facts, seen.append)
    assert not bool((found.tokens == facts.mask).any())
    for row, given_prompt in enumerate(prompts):
        width = len(given_prompt) + options.length
        assert found.tokens[row, -width:][: len(given_prompt)].tolist() == given_prompt
    assert len(seen) == found.steps <= found.forwards
    assert all(bool((a.masked >= b.masked).all()) for a, b in pairwise(seen))
    assert options.stop_early or found.written == len(prompts) * options.length
    if seen[0].steps is not None and strategy != "dynamic":
        assert found.steps <= seen[0].steps


@pytest.mark.gpu
@pytest.mark.parametrize("family", [*FULL, *CAUSAL])
def test_a_gpu_decodes_as_the_processor_does(family: str) -> None:
    """The same noise, and sums that differ in the last bits: most answers are equal."""
    model, facts = toy(family)
    fields = {"block": 4, "temperature": 0.5, "cfg": 0.3, "cache": "dual"}
    due = answers(model, facts, PROMPTS, **fields)
    found = answers(deepcopy(model).cuda(), facts, PROMPTS, **fields)
    assert sum(a == b for a, b in zip(found, due, strict=True)) >= len(PROMPTS) - 1


def test_a_compiled_model_takes_no_windows() -> None:
    module = BUILT_IN.build(dict(CASES["llada"].config))[0]
    assert takes_windows(module)
    # Nothing is compiled before the first call.
    assert not takes_windows(torch.compile(module))
    next(part for part in module.modules() if isinstance(part, Attention)).compile()
    assert not takes_windows(module)
