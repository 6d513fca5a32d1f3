"""LLaDA2: its equations, its routing, and how its fused projections are read and written."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from qdc.checkpoint.folder import Checkpoint
from qdc.errors import InvalidCheckpoint, UnsupportedModel
from qdc.frontend.opening import open_model
from qdc.models.experts import BiasedRouter, GroupedRouting
from qdc.models.families import BUILT_IN
from qdc.models.llada2 import LLADA2
from qdc.passkit.trajectory import Sampler
from qdc.pipeline.registry import standard_registry
from qdc.planning.forecast import forecast
from qdc.planning.headers import open_headers
from qdc.planning.options import ForecastOptions
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.speech import decode_facts
from tests.support.compiles import compile_tiny
from tests.support.families import CASES, write_family
from tests.support.llada2 import FUSED, PARTS, Llada2, named_flat, split_state
from tests.support.outlooks import MACHINE
from tests.support.published import FIXTURES, config_of

CASE = CASES["llada2"]


@torch.no_grad()
def test_the_equations_are_those_of_the_published_code() -> None:
    """They stand in for a class of transformers in the other tests."""
    model = Llada2(config_of("llada2"))
    stored = load_file(FIXTURES / "llada2" / "model.safetensors")
    model.load_state_dict(named_flat({name: t.float() for name, t in stored.items()}))
    data = load_file(FIXTURES / "llada2" / "forward.safetensors")
    for case in ("all", "half"):
        found = model(data[f"{case}.ids"]).logits
        torch.testing.assert_close(found, data[f"{case}.logits"], atol=1e-4, rtol=0)


def test_the_bias_chooses_and_does_not_weigh() -> None:
    """Groups of 2: the bias lifts the second group, whose own scores then count."""
    router = BiasedRouter(3, 4)
    router.weight.data = torch.tensor([[2.0, 0, 0], [1, 0, 0], [0, 0, 0], [-1, 0, 0]])
    router.get_parameter("expert_bias").data = torch.tensor([0.0, 0, 1, 1])
    routing = GroupedRouting(4, 2, groups=2, chosen=1, scale=3.0)
    weights = routing(router(torch.tensor([[[1.0, 0, 0]]])))[0, 0]
    scores = torch.tensor([0.0, -1.0]).sigmoid()
    assert weights[:2].tolist() == [0, 0]
    torch.testing.assert_close(weights[2:], 3 * scores / scores.sum())


def test_one_expert_keeps_its_score_and_narrow_models_route_in_fp32() -> None:
    router = BiasedRouter(2, 2).to(torch.bfloat16)
    router.weight.data = torch.tensor([[1.0, 0], [0, 1]], dtype=torch.bfloat16)
    found = router(torch.tensor([[[0.0, 1.0]]], dtype=torch.bfloat16))
    assert found.dtype == torch.float32
    weights = GroupedRouting(2, 1, groups=1, chosen=1, scale=2.0)(found)
    torch.testing.assert_close(weights[0, 0], torch.tensor([0, 2 * torch.tensor(1.0).sigmoid()]))


def test_fused_rows_are_read_as_three_layers(tmp_path: Path) -> None:
    checkpoint, program = open_model(write_family(tmp_path, CASE))
    stored = load_file(tmp_path / "model.safetensors")
    expected = split_state(CASE.config, stored)
    assert set(checkpoint.headers) == set(expected)
    for name, tensor in expected.items():
        assert checkpoint.headers[name].shape == tensor.shape
        assert torch.equal(checkpoint.tensor(name), tensor)
    stages = program.graph.regions[0].stages
    assert [layer.rpartition(".")[2] for layer in stages[0].layers] == list(PARTS)


def test_a_fused_tensor_of_other_rows_is_refused(tmp_path: Path) -> None:
    write_family(tmp_path, CASE)
    stored = load_file(tmp_path / "model.safetensors")
    name = next(each for each in stored if FUSED in each)
    save_file({**stored, name: stored[name][:-1].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(InvalidCheckpoint, match="shape") as caught:
        open_model(tmp_path)
    assert caught.value.where[0].startswith(f"{name}: ")


def test_missing_fused_rows_are_told_by_the_name_of_the_published_tensor(tmp_path: Path) -> None:
    write_family(tmp_path, CASE)
    stored = load_file(tmp_path / "model.safetensors")
    name = next(each for each in stored if FUSED in each)
    save_file({n: t for n, t in stored.items() if n != name}, tmp_path / "model.safetensors")
    with pytest.raises(InvalidCheckpoint, match="lacks 3 tensors") as caught:
        open_model(tmp_path)
    assert all(place.endswith(f" of {name}") for place in caught.value.where)
    assert "fetch the shards again" in caught.value.help


def test_fused_rows_beside_a_part_of_them_are_refused(tmp_path: Path) -> None:
    write_family(tmp_path, CASE)
    stored = load_file(tmp_path / "model.safetensors")
    name = next(each for each in stored if FUSED in each)
    part = name.replace(FUSED, "key")
    save_file({**stored, part: torch.zeros(24, 32)}, tmp_path / "model.safetensors")
    with pytest.raises(InvalidCheckpoint, match="one place") as caught:
        open_model(tmp_path)
    assert set(caught.value.where) == {name, part}


def test_parts_of_their_own_are_taken(tmp_path: Path) -> None:
    write_family(tmp_path, CASE)
    stored = load_file(tmp_path / "model.safetensors")
    parts = {n: t.clone() for n, t in split_state(CASE.config, stored).items()}
    save_file(parts, tmp_path / "model.safetensors")
    checkpoint, _ = open_model(tmp_path)
    assert set(checkpoint.headers) == set(Checkpoint(tmp_path).headers)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"n_group": 3}, "num_experts 8 do not split into 3 groups"),
        ({"topk_group": 5}, "topk_group 5 is above n_group 4"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok 5 is above the 4 experts"),
        ({"n_group": 8, "topk_group": 4}, "n_group 8: groups are chosen by their 2 best experts"),
        ({"rotary_dim": 12}, "rotary_dim: the other fields give 6; mend"),
        ({"partial_rotary_factor": 0.25}, "cannot be rotated by 3 of their columns"),
        ({"norm_topk_prob": False}, "norm_topk_prob"),
        ({"num_key_value_heads": 0}, "num_key_value_heads"),
        ({"block_size": 0}, "block_size: Input should be greater than 0"),
        ({"block_size": 1 << 31}, "block_size: Input should be less than or equal to 2147483647"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling.rope_type"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(fields: dict[str, object], text: str) -> None:
    given = {**CASE.config, **fields}
    if "partial_rotary_factor" in fields:
        given.pop("rotary_dim")
    with pytest.raises(UnsupportedModel) as caught:
        BUILT_IN.build(given)
    assert any(text in place for place in caught.value.where), caught.value.where


def test_an_index_alone_gives_the_shapes(tmp_path: Path) -> None:
    """As ``qdc plan`` opens a folder without shards, under the published names."""
    shapes = CASE.shapes(CASE.config)
    (tmp_path / "config.json").write_text(json.dumps({**CASE.config, "torch_dtype": "bfloat16"}))
    index = {"weight_map": dict.fromkeys(shapes, "model-00001-of-00001.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint, program, assumed = open_headers(tmp_path)
    assert "no shard is here" in assumed
    assert checkpoint.nbytes == 2 * sum(math.prod(shape) for shape in shapes.values())
    stages = [stage.layers for stage in program.graph.regions[1].stages]
    assert [layer.rpartition(".")[2] for layer in stages[0]] == list(PARTS)
    assert len(stages) == 2 + 2 * (CASE.config["num_experts"] + 1)


@pytest.mark.parametrize(("named", "end"), [(None, 156892), (7, 7)])
def test_the_end_of_sequence_is_the_family_s_where_nothing_else_says(
    named: int | None, end: int
) -> None:
    config = {**CASE.config, "vocab_size": 157184}
    del config["mask_token_id"]
    family = BUILT_IN.find(config)
    assert family is not None
    facts = family.build(config)[1]
    assert facts.mask == 156895
    silent = SimpleNamespace(eos_token_id=None, get_vocab=dict)
    known = decode_facts(facts, cast("Any", silent), {"eos_token_id": named}, family)
    assert known.ends == (end,)
    assert known.usual == {"strategy": "dynamic", "threshold": 0.95}


def test_what_the_configuration_leaves_to_published_code_is_told(tmp_path: Path) -> None:
    write_family(tmp_path, CASE)
    assert open_model(tmp_path)[0].assumed_fields == ""
    silent = {**CASE.config, "vocab_size": 157184}
    del silent["mask_token_id"], silent["block_size"]
    told = BUILT_IN.assumed(silent)
    assert told.startswith("mask_token_id 156895, block_size 32: ")
    assert told.endswith("llada2 is published so")
    named = {**CASE.config}
    del named["block_size"]
    (tmp_path / "config.json").write_text(json.dumps(named))
    assert open_model(tmp_path)[0].assumed_fields.startswith("block_size 32: ")
    asked = ForecastOptions.parse(model_dir=tmp_path, passes="rtn-lower{group=8},pack")
    found = forecast(asked, standard_registry(), MACHINE, text=False)
    assert found.assumed.startswith("block_size 32: ")
    report = compile_tiny(tmp_path, tmp_path / "out", "rtn-lower{group=8},pack")
    assert report.assumed_fields == found.assumed


def test_its_sampler_steps_back_where_another_is_asked_for() -> None:
    usual = LLADA2.decoding
    settled = DecodeOptions().settled(usual)
    assert (settled.strategy, settled.threshold) == ("dynamic", 0.95)
    assert DecodeOptions(threshold=0.5).settled(usual).threshold == 0.5
    assert DecodeOptions(strategy="dynamic").settled(usual).threshold == 0.95
    assert DecodeOptions(strategy="threshold").settled(usual).threshold is None
    assert DecodeOptions().settled({}).strategy == "low-confidence"


def test_trajectories_are_sampled_by_its_own_sampler() -> None:
    facts = BUILT_IN.build(CASE.config)[1]
    assert Sampler().text(facts) == "dynamic{threshold=0.95}"
    assert str(Sampler().make(facts)) == "dynamic{threshold=0.95}"
