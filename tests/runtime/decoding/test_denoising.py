"""Canvases of noise: the published run, the rules of a step, and what is refused."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from qdc.errors import QdcError
from qdc.numerics.noise import Places
from qdc.runtime.decoding import denoising_loop
from qdc.runtime.decoding.denoising import Draft, Ending, Renoise, accepted, draw_draft
from qdc.runtime.decoding.denoising_reader import DenoisingReader
from qdc.runtime.decoding.facts import DecodeFacts
from qdc.runtime.decoding.fill import fill
from qdc.runtime.decoding.loop import decode
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.results import Snapshot
from tests.support import decoding
from tests.support.traces import open_model, read_traces

CANVAS, WORDS = 4, 9
FACTS = DecodeFacts(vocabulary=WORDS, eos=0, ends=(0,), max_length=64, canvas=CANVAS)


class Denoiser:
    """Wants the token of each place to be the number of its row's tokens before it, and is sure."""

    def __init__(self, sure: float = 30.0) -> None:
        self.sure = sure
        self.conditioned: list[bool] = []

    def __call__(
        self, tokens: Tensor, mask: Tensor | None = None, *, before: Tensor | None
    ) -> Tensor:
        self.conditioned.append(before is not None)
        hidden = 0 if mask is None else (~mask).sum(1)
        place = torch.arange(tokens.shape[1]) - torch.as_tensor(hidden)[..., None]
        wanted = place.expand(tokens.shape) % WORDS
        return self.sure * torch.nn.functional.one_hot(wanted.clamp(min=0), WORDS).float()


def asked(own: str = "", **fields: object) -> DecodeOptions:
    text = f"renoise{{{own}}}" if own else "renoise"
    return DecodeOptions.model_validate({"strategy": text, "length": 8, **fields})


@pytest.mark.parametrize("cache", ["none", "prefix"])
def test_decides_what_transformers_decided(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ((folder, trace),) = read_traces("canvas")
    module, facts = open_model(folder)
    drawn: Iterator[list[list[int]]] = iter(trace["canvases"])
    shown: list[Tensor] = []

    def recorded(places: Places, kind: str, vocabulary: int) -> Tensor:
        return torch.tensor(next(drawn)).flatten()

    def reads(reader: DenoisingReader, canvas: Tensor, before: Tensor) -> Tensor:
        shown.append(canvas.clone())
        return read(reader, canvas, before)

    read = DenoisingReader.read
    monkeypatch.setattr(denoising_loop, "random_tokens", recorded)
    monkeypatch.setattr(DenoisingReader, "read", reads)
    own = (
        f"entropy-bound={trace['entropy_bound']} denoising-steps={trace['max_denoising_steps']} "
        f"first-temperature={trace['t_max']} last-temperature={trace['t_min']} "
        f"stability={trace['stability']} confidence={trace['confidence']} greedy=true"
    )
    prompt = trace["prompt"][0]
    options = asked(own, length=len(trace["answer"][0]) - len(prompt), cache=cache)
    found = decode(module, [prompt], options, DecodeFacts.of(facts, 1, (1,)))
    assert [canvas.tolist() for canvas in shown] == [step["canvas"] for step in trace["steps"]]
    assert found.tokens.tolist() == trace["answer"]
    assert found.steps == len(trace["steps"])
    assert next(drawn, None) is None


@pytest.mark.parametrize("cache", ["none", "prefix"])
def test_a_batch_gives_what_each_prompt_gives_alone(cache: str) -> None:
    module, facts = open_model("diffusion-gemma")
    known = DecodeFacts.of(facts, 1, (1,))
    prompts = [list(range(5, 17)), [], [9], list(range(3, 14))]
    options = asked("confidence=0.6 entropy-bound=2", length=12, cache=cache, seed=3)
    together = decode(module, prompts, options, known)
    assert [decode(module, [p], options, known).answers[0] for p in prompts] == together.answers
    other = decode(module, prompts, options.model_copy(update={"seed": 4}), known)
    assert other.answers != together.answers


def test_a_sure_model_writes_a_canvas_in_the_steps_that_show_it_stable() -> None:
    model, seen = Denoiser(), list[Snapshot]()
    found = decode(model, [[5, 5], [5]], asked(length=6), FACTS, seen.append)
    assert found.answers == [[2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6]]
    assert (found.steps, found.forwards, found.written) == (4, 4, 12)
    assert model.conditioned == [False, True, False, True]
    open_places = [state.masked[0, -6:].tolist() for state in seen]
    assert open_places == [[True] * 6, [False] * 4 + [True] * 2, [False] * 4 + [True] * 2,
                           [False] * 6]  # fmt: skip
    assert all(state.tokens.shape == (2, 8) for state in seen)


def test_steps_end_where_the_model_is_never_sure() -> None:
    found = decode(Denoiser(sure=0.1), [[5]], asked("denoising-steps=3", length=4), FACTS)
    assert found.steps == 3
    assert found.answers == [[1, 2, 3, 4]]


def test_an_end_leaves_out_the_canvases_behind_it() -> None:
    prompt = [5] * 7
    early, late = (
        decode(Denoiser(), [prompt], asked(length=12, stop_early=stops), FACTS)
        for stops in (True, False)
    )
    assert early.answers == late.answers == [[7, 8]]
    assert (early.steps, late.steps) == (2, 6)
    assert early.tokens[0, -12:].tolist() == [7, 8, 0, 1] + [0] * 8


def test_the_surest_are_accepted_up_to_the_bound() -> None:
    entropy = torch.tensor([[0.05, 0.5, 0.04, 0.2], [9.0, 8.0, 7.0, 7.0]], dtype=torch.float64)
    # .04 | .04 + .05 | .09 + .2 is more: the last accepted one counts for nothing itself.
    assert accepted(entropy, 0.1).tolist() == [
        [True, False, True, True],
        [False, False, True, False],
    ]
    assert bool(accepted(entropy, 99).all())


def test_tokens_are_drawn_from_the_tempered_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(1, 6000, 3).clone()
    places = Places([1] * 6000, range(6000), 2)
    found = draw_draft(logits, Renoise(), places)
    shares = found.tokens.flatten().bincount().double() / 6000
    expected = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64).softmax(0)
    assert torch.allclose(shares, expected, atol=0.02)
    assert torch.allclose(found.entropy, torch.special.entr(expected).sum(), atol=1e-6)
    assert bool((found.best == 2).all())


def test_a_canvas_ends_when_it_is_stable_and_sure() -> None:
    def after(ending: Ending, *best: int, entropy: float) -> bool:
        tokens = torch.tensor([best])
        return bool(ending.after(Draft(tokens, tokens, torch.full(tokens.shape, entropy).double())))

    ending = Ending(Renoise(stability=2, confidence=0.1))
    steps = [(1, 2, 0.0), (1, 2, 0.0), (1, 2, 0.2), (1, 2, 0.0), (1, 3, 0.0), (1, 3, 0.0)]
    assert [after(ending, a, b, entropy=e) for a, b, e in steps] == [False] * 3 + [True] + [
        False
    ] * 2
    at_once = Ending(Renoise(stability=0))
    assert [after(at_once, n, entropy=0.0) for n in (1, 2)] == [True, True]


def test_temperatures_fall_evenly() -> None:
    strategy = Renoise(denoising_steps=4)
    found = [strategy.temperature(left) for left in (4, 3, 2, 1)]
    assert found == pytest.approx([0.8, 0.7, 0.6, 0.5])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"strategy": "threshold"}, "fills masked places, and the model has no mask token"),
        ({"strategy": "renoise", "steps": 4}, "steps has no effect on renoise"),
        ({"strategy": "renoise", "block": 4}, "block has no effect on renoise"),
        ({"strategy": "renoise", "temperature": 1}, "temperature has no effect on renoise"),
        ({"strategy": "renoise", "cfg": 1}, "renoise takes no cfg"),
        ({"strategy": "renoise", "forbid_eos": True}, "no forbid_eos"),
        ({"strategy": "renoise", "cache": "dual"}, "nothing is behind a canvas"),
        ({"strategy": "renoise", "cache": "prefix"}, "computed in parts"),
        ({"strategy": "renoise{first-temperature=0.1}"}, "0.4 is above first-temperature 0.1"),
        ({"strategy": "renoise", "length": 62}, "in whole canvases of 4 are 66"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(options: dict[str, object], problem: str) -> None:
    wanted = DecodeOptions.model_validate({"length": 8, **options})
    with pytest.raises(QdcError) as refused:
        decode(Denoiser(), [[5, 5]], wanted, FACTS)
    assert problem in str(refused.value)


def test_masks_and_canvases_are_not_taken_for_each_other() -> None:
    with pytest.raises(QdcError, match="the model was trained to fill masks"):
        decode(Denoiser(), [[5]], asked(), decoding.facts())
    with pytest.raises(QdcError, match="fills no gaps"):
        fill(Denoiser(), [[5, 5]], [[False, True]], DecodeOptions(length=1), FACTS)
    with pytest.raises(QdcError, match="the model was trained to fill masks"):
        fill(Denoiser(), [[5, 5]], [[False, True]], asked(length=1), decoding.facts())
