"""What ``generation_config.json`` sets is what canvases are written with, and where answers end."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qdc.cli.models import open_runnable
from qdc.errors import QdcError
from qdc.models.families import BUILT_IN
from qdc.runtime.decoding.facts import DecodeFacts
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.speech import decode_facts
from qdc.runtime.decoding.strategies import own_strategy
from tests.support.canvas import write_canvas
from tests.support.published import config_of

FIELDS: dict[str, Any] = {
    "max_denoising_steps": 3,
    "t_max": 0.9,
    "t_min": None,
    "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.25},
    "eos_token_id": [1, 106],
    "top_k": 64,
}
WRITTEN = "renoise{denoising-steps=3 first-temperature=0.9 entropy-bound=0.25}"


def facts_of(generation: dict[str, Any], vocabulary: dict[str, int] | None = None) -> DecodeFacts:
    config = config_of("diffusion-gemma")
    family = BUILT_IN.find(config)
    assert family is not None
    tokenizer = SimpleNamespace(eos_token_id=1, get_vocab=lambda: vocabulary or {})
    model = family.build(config)[1]
    return decode_facts(model, cast("Any", tokenizer), config, family, generation)


def test_the_checkpoint_sets_the_sampler_and_the_ends() -> None:
    facts = facts_of(FIELDS, {"<turn|>": 107})
    assert facts.ends == (1, 106, 107)
    assert own_strategy(facts) == WRITTEN
    assert DecodeOptions().settled(facts.usual).strategy == WRITTEN
    named = DecodeOptions(strategy="renoise").settled(facts.usual)
    assert (named.strategy, named.cache) == (WRITTEN, "prefix")
    other = "renoise{stability=2}"
    assert DecodeOptions(strategy=other).settled(facts.usual).strategy == other
    assert facts_of({}).usual["strategy"] == "renoise"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("t_min", "low"),
        ("sampler_config", {"_cls_name": "OtherConfig"}),
        ("sampler_config", {"entropy_bound": True}),
        ("sampler_config", {"margin": 2}),
    ],
)
def test_another_sampler_is_refused(field: str, value: object) -> None:
    with pytest.raises(QdcError, match="a sampler that is not implemented") as caught:
        facts_of({field: value})
    assert caught.value.where[0].startswith(field)


def test_a_folder_is_opened_with_the_file_that_it_holds(tmp_path: Path) -> None:
    folder = write_canvas(tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps(FIELDS), encoding="utf-8")
    assert own_strategy(open_runnable(folder, "cpu", []).decoding) == WRITTEN
