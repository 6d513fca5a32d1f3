"""Adaptive parallel decoding: its equations written out, its progress, its verifier."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from qdc.errors import QdcError
from qdc.runtime.decoding.apd import Apd, accepted, draw_draft, target_tokens
from qdc.runtime.decoding.facts import DecodeFacts
from qdc.runtime.decoding.loop import decode
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.results import Snapshot
from qdc.runtime.decoding.strategies import make_strategy
from qdc.runtime.decoding.verifier import NativeVerifier, load_verifier
from qdc.text.tokenizer import load_tokenizer
from tests.support.checkpoints import EMBEDDED, write_checkpoint
from tests.support.decoding import EOS, Table, facts, places
from tests.support.natives import write_native
from tests.support.threads import one_thread

__all__ = ["one_thread"]

WORDS = 6


def options(**fields: Any) -> DecodeOptions:
    return DecodeOptions.model_validate({"strategy": "apd", "apd_window": 0, **fields})


def strategy(wanted: DecodeOptions) -> Apd:
    made = make_strategy(wanted)
    assert isinstance(made, Apd)
    return made


class Judge:
    """A verifier that gives each position the same logits, and counts."""

    vocabulary = WORDS

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.asked: list[tuple[list[int], int]] = []

    def score(self, tokens: Sequence[int], first: int) -> Tensor:
        self.asked.append((list(tokens), first))
        return self.logits[first : len(tokens)].double()


def written_out(
    ours: list[float], theirs: list[float], noise: list[float], wanted: DecodeOptions
) -> tuple[int, int]:
    """Draft and target of one place, from the uniform numbers of its noise."""
    t, r = wanted.temperature, wanted.apd_mixture

    def log_softmax(row: list[float]) -> list[float]:
        total = math.log(sum(math.exp(x) for x in row))
        return [x - total for x in row]

    def largest(row: list[float]) -> int:
        return row.index(max(row))

    if wanted.apd_acceptance == "parity":
        raw = ours
        if t:
            raw = [math.exp(x / t) / (-math.log(u)) ** t for x, u in zip(ours, noise, strict=True)]
        mixed = [r * a + (1 - r) * b for a, b in zip(ours, theirs, strict=True)]
        return largest(raw), largest(mixed)
    gumbel = [-math.log(-math.log(u)) if t else 0.0 for u in noise]
    p, q = (log_softmax([x / (t or 1) for x in row]) for row in (ours, theirs))
    draft = [a + g for a, g in zip(p, gumbel, strict=True)]
    target = [r * a + (1 - r) * b + g for a, b, g in zip(p, q, gumbel, strict=True)]
    return largest(draft), largest(target)


@pytest.mark.parametrize("acceptance", ["parity", "corrected"])
@pytest.mark.parametrize("temperature", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("mixture", [0.0, 0.4, 0.7, 1.0])
def test_the_equations(acceptance: str, temperature: float, mixture: float) -> None:
    wanted = options(temperature=temperature, apd_mixture=mixture, apd_acceptance=acceptance)
    generator = torch.Generator().manual_seed(4)
    ours, theirs = torch.randn(2, 20, WORDS, generator=generator, dtype=torch.float64)
    draft = draw_draft(ours, strategy(wanted), places(20))
    target = target_tokens(draft, theirs, strategy(wanted))
    noise = places(20).draws("token", WORDS).tolist()
    rows = zip(ours.tolist(), theirs.tolist(), noise, strict=True)
    due = [written_out(a, b, u, wanted) for a, b, u in rows]
    assert list(zip(draft.tokens.tolist(), target.tolist(), strict=True)) == due


def test_the_longest_beginning_that_agrees() -> None:
    draft = torch.tensor([2, 3, 4, 5])
    assert accepted(draft, torch.tensor([2, 3, 4, 5])) == 4
    assert accepted(draft, torch.tensor([2, 3, 5, 5])) == 2
    assert accepted(draft, torch.tensor([2, 4, 4, 5])) == 1
    assert accepted(draft, torch.tensor([3, 3, 4, 4])) == 3


def peaks(tokens: Sequence[int]) -> Tensor:
    logits = torch.zeros(len(tokens), WORDS)
    logits[torch.arange(len(tokens)), torch.tensor(tokens)] = 5.0
    return logits


def test_a_run_by_hand() -> None:
    """The verifier disagrees at the second and at the fourth place; four places are seen."""
    model = Table(peaks([5, 2, 3, 4, 2, 3, 4]))
    judge = Judge(peaks([5, 2, 4, 4, 3, 3, 4]))
    seen: list[Snapshot] = []
    wanted = options(length=6, apd_mixture=0.3, apd_lookahead=4)
    found = decode(model, [[5]], wanted, facts(), seen.append, judge)
    assert found.answers == [[2, 3, 4, 2, 3, 4]]
    # 2 | 3 4 | 2 3 4: the first of each step is accepted unseen.
    assert [int(s.masked.sum()) for s in seen] == [5, 3, 0]
    assert [len(row[0]) for row in model.seen] == [5, 6, 7]
    assert judge.asked == [
        ([5, 2, 3, 4, 2], 1),
        ([5, 2, 3, 4, 2, 3], 2),
        ([5, 2, 3, 4, 2, 3, 4], 4),
    ]
    assert (found.steps, found.forwards, found.written) == (3, 3, 6)
    assert seen[-1].steps is None


@pytest.mark.parametrize(
    ("acceptance", "temperature"), [("parity", 0.0), ("corrected", 0.0), ("corrected", 0.8)]
)
def test_without_a_say_the_verifier_accepts_all(acceptance: str, temperature: float) -> None:
    generator = torch.Generator().manual_seed(2)
    model = Table(torch.randn(9, WORDS, generator=generator))
    judge = Judge(torch.randn(9, WORDS, generator=generator))
    wanted = options(length=8, apd_mixture=1.0, apd_acceptance=acceptance, temperature=temperature)
    assert decode(model, [[5]], wanted, facts(), None, judge).steps == 1


def test_a_verifier_of_the_same_mind_accepts_all() -> None:
    logits = torch.randn(9, WORDS, generator=torch.Generator().manual_seed(2))
    logits[:, 1] = -1e9  # the mask, which the model never writes
    wanted = options(length=8, apd_mixture=0.0, temperature=0.8)
    found = decode(Table(logits), [[5]], wanted, facts(), None, Judge(logits))
    assert found.steps == 1


def test_a_verifier_that_always_differs_leaves_one_token_a_step() -> None:
    model, judge = Table(peaks([2] * 10)), Judge(peaks([3] * 10))
    found = decode(model, [[5], [5, 5]], options(length=8, apd_mixture=0.1), facts(), None, judge)
    assert found.steps == found.forwards == 16
    assert found.answers == [[2] * 8, [2] * 8]


def test_an_end_ends_a_row() -> None:
    model = Table(peaks([5, 2, EOS, 3, 3]))
    judge = Judge(model.logits)
    ends = facts(eos=EOS, ends=(EOS,))
    found = decode(model, [[5], [4]], options(length=4), ends, None, judge)
    assert found.tokens.tolist() == [[5, 2, EOS, EOS, EOS], [4, 2, EOS, EOS, EOS]]
    assert (found.answers, found.written) == ([[2], [2]], 4)
    longer = decode(model, [[5]], options(length=4, stop_early=False), ends, None, judge)
    assert longer.tokens.tolist() == [[5, 2, EOS, 3, 3]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A diffusion model and an autoregressive one, both random, with one tokenizer."""
    folder = tmp_path_factory.mktemp("apd")
    return write_checkpoint(folder / "model", d_model=32, mlp_hidden_size=48), write_native(
        folder / "verifier", "llama"
    )


def loaded(models: tuple[Path, Path]) -> NativeVerifier:
    return load_verifier(models[1], "cpu", load_tokenizer(models[0]), 2048)


@torch.no_grad()
def test_a_verifier_scores_as_its_model_does(models: tuple[Path, Path]) -> None:
    """Whatever it has kept: calls that go on, go back, and share nothing."""
    verifier = loaded(models)
    model = LlamaForCausalLM.from_pretrained(models[1], dtype=torch.float32)
    calls = [
        ([5, 6, 7, 8, 9], 3),
        ([5, 6, 7, 8, 3, 4], 4),
        ([5, 6, 7, 8, 3, 4, 9, 9], 6),
        ([5, 6, 7], 1),
        ([8, 6, 7, 2], 2),
        ([8, 6, 7, 2], 2),
    ]
    for tokens, first in calls:
        due = model(input_ids=torch.tensor([tokens])).logits[0, first - 1 : -1]
        found = verifier.score(tokens, first).float()
        torch.testing.assert_close(found, due, atol=1e-4, rtol=0)


def test_a_verifier_that_failed_has_kept_nothing(models: tuple[Path, Path]) -> None:
    """Half of the layers' keys may be of the text that failed, and none of the text before."""
    verifier, tokens = loaded(models), [5, 6, 7, 8, 9]
    due = verifier.score(tokens, 1)

    def fail(*given: object) -> None:
        raise MemoryError

    hook = verifier.body.get_submodule("model.layers.1").register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        verifier.score([5, 6, 3, 3, 3], 3)
    hook.remove()
    torch.testing.assert_close(verifier.score(tokens, 4), due[3:], atol=1e-4, rtol=0)


def test_a_window_changes_little_and_none_changes_nothing(models: tuple[Path, Path]) -> None:
    """With a window as long as the text, all is computed anew, and steps are those without one."""
    import qdc

    model, verifier = qdc.load_original(models[0]), loaded(models)
    known = DecodeFacts(mask_token_id=1, vocabulary=2048, eos=0, ends=(0,), max_length=64)

    def run(window: int) -> list[list[int]]:
        wanted = options(length=20, apd_window=window, temperature=0.5, apd_mixture=0.9)
        return decode(model, [[5, 6], [7, 8, 9]], wanted, known, None, verifier).answers

    whole = run(0)
    assert run(64) == whole
    assert [len(answer) for answer in run(2)] == [20, 20]


def test_another_tokenizer_is_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    folder = write_native(tmp_path / "other", "llama")
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    words = stored["model"]["vocab"]
    first, second = [token for token, number in words.items() if number in (500, 501)]
    words[first], words[second] = words[second], words[first]
    (folder / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(QdcError, match="the verifier has another tokenizer: 2 plain tokens differ"):
        load_verifier(folder, "cpu", load_tokenizer(models[0]), 2048)


def test_special_tokens_may_differ_behind_the_plain_ones(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    """As Dream adds its mask to Qwen's; one in front of plain tokens hides all of them."""
    tokenizer = load_tokenizer(models[0])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<further>"]})
    assert load_verifier(models[1], "cpu", tokenizer, 4096).vocabulary == 2048
    folder = write_native(tmp_path / "renamed", "llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace("<|mdm_mask|>", "<|other|>"), encoding="utf-8")
    with pytest.raises(QdcError, match="differs at the special token 1, in front of 20"):
        load_verifier(folder, "cpu", load_tokenizer(models[0]), 2048)


def test_verifiers_that_are_none(models: tuple[Path, Path], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(EMBEDDED)
    with pytest.raises(QdcError, match=r"(?s)no autoregressive.*no model type 'llada'"):
        load_verifier(models[0], "cpu", tokenizer, 2048)
    with pytest.raises(QdcError, match="the verifier is no autoregressive model"):
        load_verifier(write_native(tmp_path / "bert", "bert"), "cpu", tokenizer, 2048)
    folder = write_native(tmp_path / "cut", "llama")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(QdcError, match="1 tensors of the verifier are missing"):
        load_verifier(folder, "cpu", tokenizer, 2048)


def test_what_does_not_fit_is_refused() -> None:
    model, judge = Table(peaks([2] * 9)), Judge(peaks([2] * 9))
    with pytest.raises(QdcError, match="needs an autoregressive verifier"):
        decode(model, [[5]], options(length=4), facts())
    with pytest.raises(QdcError, match="low-confidence asks no verifier"):
        decode(model, [[5]], DecodeOptions(length=4), facts(), None, judge)
    with pytest.raises(QdcError, match="needs a prompt"):
        decode(model, [[]], options(length=4), facts(), None, judge)
    with pytest.raises(QdcError, match="the model is block-causal"):
        decode(model, [[5]], options(length=4), facts(attention_block=4), None, judge)
    with pytest.raises(QdcError, match="needs a model that is computed in parts"):
        decode(model, [[5]], options(length=4, apd_window=8), facts(), None, judge)
