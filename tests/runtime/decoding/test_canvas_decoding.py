"""Canvases are decided as the installed transformers decides them, whatever is asked for."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    EntropyBoundSamplerConfig,
)

from qdc.numerics.noise import Places
from qdc.runtime.decoding import denoising_loop
from qdc.runtime.decoding.facts import DecodeFacts
from qdc.runtime.decoding.loop import decode
from qdc.runtime.decoding.options import DecodeOptions
from tests.support.published import FIXTURES
from tests.support.traces import open_model

ENDS = tuple(range(90, 130))
RUNS = [  # prompts' lengths, bound, steps, stability, confidence, length, ends
    ([14, 1], 0.1, 10, 1, 0.3, 24, ()),
    ([11, 17, 1], 2.0, 12, 0, 0.6, 24, ()),
    ([17], 0.5, 11, 2, 2.0, 16, ()),
    ([9], 2.0, 6, 1, 0.6, 32, ENDS),
    ([20], 0.1, 5, 1, 1.0, 32, ENDS),
]


@pytest.fixture(scope="module")
def native() -> DiffusionGemmaForBlockDiffusion:
    folder = FIXTURES / "diffusion-gemma"
    model = DiffusionGemmaForBlockDiffusion.from_pretrained(folder, dtype=torch.float32)
    model.train(mode=False)
    return model


def generated(
    model: DiffusionGemmaForBlockDiffusion,
    ids: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    **asked: object,
) -> tuple[Tensor, list[Tensor]]:
    """New tokens of ``generate`` with the most probable ones for draws, and the noise it drew."""
    noise: list[Tensor] = []
    draw: Callable[..., Tensor] = torch.randint

    def recorded(*given: Any, **named: Any) -> Tensor:
        noise.append(draw(*given, **named))
        return noise[-1]

    with monkeypatch.context() as patch:
        patch.setattr(torch, "randint", recorded)
        patch.setattr(torch, "multinomial", lambda p, num_samples: p.argmax(-1, keepdim=True))
        found = model.generate(ids, t_min=0.4, t_max=0.8, pad_token_id=None, **asked).sequences
    return found[:, ids.shape[1] :], noise


def again(drawn: Iterator[Tensor]) -> Callable[[Places, str, int], Tensor]:
    """The noise that was drawn, in place of the loop's own."""
    return lambda places, kind, vocabulary: next(drawn).flatten()


@pytest.mark.parametrize("run", RUNS, ids=[f"run {number}" for number in range(len(RUNS))])
def test_decides_what_transformers_decides(
    run: tuple[list[int], float, int, int, float, int, tuple[int, ...]],
    native: DiffusionGemmaForBlockDiffusion,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths, bound, steps, stability, confidence, length, ends = run
    torch.manual_seed(len(lengths) + steps)
    prompts = [torch.randint(2, 90, (size,)).tolist() for size in lengths]
    width = max(lengths)
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    shown = torch.tensor([[0] * (width - size) + [1] * size for size in lengths])
    due, noise = generated(
        native, ids, monkeypatch, max_new_tokens=length, max_denoising_steps=steps,
        sampler_config=EntropyBoundSamplerConfig(bound), stability_threshold=stability,
        confidence_threshold=confidence, eos_token_id=list(ends) or None,
        **({} if len(lengths) == 1 else {"attention_mask": shown}),
    )  # fmt: skip
    module, facts = open_model("diffusion-gemma")
    known = DecodeFacts.of(facts, ends[0] if ends else None, ends)
    own = f"entropy-bound={bound} denoising-steps={steps} stability={stability} greedy=true"
    for cache in ("none", "prefix"):
        drawn = iter(noise)
        monkeypatch.setattr(denoising_loop, "random_tokens", again(drawn))
        options = DecodeOptions.model_validate(
            {
                "length": length,
                "cache": cache,
                "strategy": f"renoise{{{own} confidence={confidence}}}",
            }
        )
        found = decode(module, prompts, options, known)
        expected = [
            row[: next((n for n, token in enumerate(row) if token in ends), length)]
            for row in due.tolist()
        ]
        assert found.answers == expected
        assert next(drawn, None) is None
