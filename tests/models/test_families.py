import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qdc.errors import UnsupportedModel
from qdc.frontend.select import build_module, choose
from qdc.models.experts import routed_share
from qdc.models.families import BUILT_IN, FAMILIES, REFUSED
from qdc.models.family import Refusal
from tests.support.checkpoints import EMBEDDED
from tests.support.families import CASES, TABLES
from tests.support.published import config_of

ROOT = Path(__file__).parents[2]

SMALL: dict[str, Any] = {
    "architectures": ["LLaDAModelLM"],
    "d_model": 64,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "mlp_hidden_size": 96,
    "vocab_size": 50,
    "embedding_size": 56,
    "max_sequence_length": 32,
    "mask_token_id": 1,
}


def test_the_facts_come_from_the_configuration() -> None:
    module, facts = BUILT_IN.build(SMALL)
    assert facts.model_dump() == {
        "family": "llada",
        "mask_token_id": 1,
        "vocabulary": 56,
        "max_length": 32,
        "logits_shift": 0,
        "attention_block": None,
    }
    assert not module.training
    assert {p.device.type for p in module.parameters()} == {"meta"}
    assert not any(p.requires_grad for p in module.parameters())


def test_the_embedded_model_is_supported() -> None:
    config = json.loads((EMBEDDED / "config.json").read_text(encoding="utf-8"))
    _, facts = BUILT_IN.build(config)
    assert facts.vocabulary == 2048


def test_the_published_configuration_is_supported() -> None:
    published = {
        **SMALL,
        "activation_type": "silu",
        "alibi": False,
        "alibi_bias_max": 8.0,
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"},
        "block_group_size": 1,
        "block_type": "llama",
        "include_bias": False,
        "include_qkv_bias": False,
        "init_device": "meta",
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "multi_query_attention": None,
        "rope": True,
        "rope_full_precision": True,
        "scale_logits": False,
        "weight_tying": False,
    }
    BUILT_IN.build(published)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("block_type", "sequential"),
        ("block_group_size", 4),
        ("activation_type", "swiglu"),
        ("layer_norm_type", "default"),
        ("layer_norm_with_affine", False),
        ("rope", False),
        ("rope_full_precision", False),
        ("alibi", True),
        ("scale_logits", True),
        ("input_emb_norm", True),
        ("weight_tying", True),
        ("include_bias", True),
        ("include_qkv_bias", True),
        ("attention_layer_norm", True),
        ("clip_qkv", 8.0),
        ("d_model", 0),
        ("d_model", "wide"),
        ("d_model", 10**18),
        ("n_layers", -1),
        ("n_layers", 10**9),
        ("n_heads", None),
        ("mlp_hidden_size", 1.5),
        ("vocab_size", 10**12),
        ("embedding_size", -5),
        ("rope_theta", float("nan")),
        ("rope_theta", float("inf")),
        ("rms_norm_eps", 0),
        ("mask_token_id", -1),
        ("max_sequence_length", 0),
    ],
)
def test_a_variant_is_refused_by_its_field(field: str, value: object) -> None:
    with pytest.raises(UnsupportedModel, match="not implemented") as caught:
        BUILT_IN.build({**SMALL, field: value})
    assert [place.split(":")[0] for place in caught.value.where] == [field]


def test_all_refused_fields_are_named() -> None:
    with pytest.raises(UnsupportedModel) as caught:
        BUILT_IN.build({**SMALL, "alibi": True, "rope": False})
    assert len(caught.value.where) == 2


def test_a_field_that_is_missing_is_named() -> None:
    with pytest.raises(UnsupportedModel) as caught:
        BUILT_IN.build({name: value for name, value in SMALL.items() if name != "mask_token_id"})
    assert caught.value.where == ("mask_token_id: Field required",)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"n_heads": 3}, "d_model 64 does not split into 3 heads"),
        ({"d_model": 60}, "heads of odd width 15 cannot be rotated"),
        ({"n_kv_heads": 3}, "n_heads 4 is no multiple of n_kv_heads 3"),
        ({"mask_token_id": 56}, "mask_token_id 56 is outside the 56 embeddings"),
    ],
    ids=lambda found: found if isinstance(found, str) else "",
)
def test_sizes_must_agree(fields: dict[str, int], text: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        BUILT_IN.build({**SMALL, **fields})
    assert text in caught.value.where[0]


@pytest.mark.parametrize(
    "architectures",
    [["QwenForCausalLM"], [], None, "LLaDAModelLM", {"a": 1}, [["LLaDAModelLM"]]],
    ids=str,
)
def test_unknown_architectures_are_refused_with_the_known_ones(architectures: object) -> None:
    with pytest.raises(UnsupportedModel, match="no model family here implements") as caught:
        BUILT_IN.build({**SMALL, "architectures": architectures})
    for family in FAMILIES:
        for name in family.architectures:
            assert name in caught.value.help


def test_a_configuration_without_architectures_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="a model without architectures"):
        BUILT_IN.build({})


def test_building_takes_no_memory(tmp_path: Path) -> None:
    giant = {**SMALL, "d_model": 1 << 20, "mlp_hidden_size": 1 << 22, "n_layers": 4}
    module, _ = BUILT_IN.build(giant)
    assert sum(p.numel() for p in module.parameters()) > 1e13
    assert torch.get_default_device().type == "cpu"


DECODERS = sorted(set(CASES) - {"llada"})


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_act", "gelu"),
        ("use_sliding_window", True),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("rope_parameters", {"rope_type": "linear", "factor": 2.0}),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("hidden_size", 0),
        ("hidden_size", 10**18),
        ("num_hidden_layers", 10**9),
        ("num_attention_heads", None),
        ("vocab_size", 1.5),
        ("rope_theta", float("nan")),
        ("rms_norm_eps", 0),
        ("mask_token_id", -1),
        ("tie_word_embeddings", "maybe"),
    ],
)
def test_a_variant_of_the_qwen_layout_is_refused(name: str, field: str, value: object) -> None:
    with pytest.raises(UnsupportedModel, match="not implemented") as caught:
        BUILT_IN.build({**CASES[name].config, field: value})
    assert {place.split(":")[0].split(".")[0] for place in caught.value.where} == {field}


@pytest.mark.parametrize(
    ("name", "fields", "text"),
    [
        ("llada-moe", {"num_experts": 0}, "num_experts"),
        (
            "llada-moe",
            {"num_experts": 4096, "num_hidden_layers": 1024, "moe_layer_freq": None},
            "more than 32768 experts",
        ),
        ("llada-moe", {"num_experts_per_tok": 5}, "num_experts_per_tok 5 is above num_experts 4"),
        ("llada-moe", {"expert_intermediate_size": None}, "expert_intermediate_size"),
        ("llada-moe", {"shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size"),
        ("llada-moe", {"moe_router_score_function": "sigmoid"}, "moe_router_score_function"),
        ("llada-moe", {"moe_router_enable_expert_bias": True}, "moe_router_enable_expert_bias"),
        ("llada-moe", {"routed_scaling_factor": 2.5}, "routed_scaling_factor"),
        ("llada-moe", {"router_num_group": 8}, "router_num_group"),
        ("llada-moe", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llada-moe", {"clip_qkv": 8.0}, "clip_qkv"),
        ("llada-moe", {"moe_layer_freq": [1]}, "moe_layer_freq describes 1 of 2 blocks"),
        ("llada-moe", {"moe_layer_freq": [0, 1]}, "dense_intermediate_size is missing"),
        ("sdar-moe", {"attention_bias": True}, "attention_bias"),
        ("sdar-moe", {"mlp_only_layers": [1], "intermediate_size": None}, "intermediate_size"),
        ("sdar-moe", {"decoder_sparse_step": 0}, "decoder_sparse_step"),
    ],
)
def test_a_variant_of_routing_is_refused(name: str, fields: dict[str, object], text: str) -> None:
    with pytest.raises(UnsupportedModel, match="not implemented") as caught:
        BUILT_IN.build({**CASES[name].config, **fields})
    assert text in caught.value.where[0]


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("llada", 1),
        ("llada-moe", 1 / 2),
        ("llada-moe with a dense block", 1 / 2),
        ("sdar-moe", 3 / 4),
        ("llada2", 3 / 8),
        ("stable-diffcoder", 1),
    ],
)
def test_an_expert_gets_its_share_of_the_tokens(name: str, share: float) -> None:
    assert routed_share(BUILT_IN.build(CASES[name].config)[0]) == share


@pytest.mark.parametrize(
    ("name", "fields", "sparse"),
    [
        ("llada-moe", {}, [0, 1]),
        ("llada-moe", {"moe_layer_freq": [1, 0], "dense_intermediate_size": 40}, [0]),
        ("sdar-moe", {"mlp_only_layers": [0]}, [1]),
        ("sdar-moe", {"decoder_sparse_step": 2}, [1]),
        ("llada2", {}, [1]),
        ("llada2", {"first_k_dense_replace": 0}, [0, 1]),
    ],
)
def test_dense_blocks_are_where_the_configuration_has_them(
    name: str, fields: dict[str, object], sparse: list[int]
) -> None:
    state = BUILT_IN.build({**CASES[name].config, **fields})[0].state_dict()
    assert [i for i in (0, 1) if f"model.layers.{i}.mlp.gate.weight" in state] == sparse


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"hidden_size": 30}, "hidden_size 30 does not split into 4 heads"),
        ({"head_dim": 7}, "heads of odd width 7 cannot be rotated"),
        ({"num_key_value_heads": 3}, "4 is no multiple of num_key_value_heads 3"),
        ({"mask_token_id": 2048}, "mask_token_id 2048 is outside the 2048 embeddings"),
    ],
    ids=lambda found: found if isinstance(found, str) else "",
)
def test_sizes_of_the_qwen_layout_must_agree(fields: dict[str, int], text: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        BUILT_IN.build({**CASES["dream"].config, **fields})
    assert text in caught.value.where[0]


def test_dream_is_not_run_beyond_what_it_was_trained_on() -> None:
    config = {**CASES["dream"].config, "max_position_embeddings": 131072}
    assert BUILT_IN.build(config)[1].max_length == 2048
    assert BUILT_IN.build(CASES["dream"].config)[1].max_length == 64


def test_the_model_type_decides_nothing() -> None:
    config = {**CASES["dream"].config, "model_type": "llada"}
    assert BUILT_IN.build(config)[1].family == "dream"
    unknown = {**SMALL, "model_type": "llada", "architectures": ["SomethingElse"]}
    assert BUILT_IN.find(unknown) is None
    with pytest.raises(UnsupportedModel, match="no model family here implements SomethingElse"):
        BUILT_IN.build(unknown)


@pytest.mark.parametrize("refusal", REFUSED, ids=lambda refusal: refusal.name)
def test_known_families_are_refused_with_a_reason(refusal: Refusal) -> None:
    for name in refusal.architectures:
        config = {"architectures": [name]}
        assert BUILT_IN.find(config) is None
        assert BUILT_IN.refusal(config) is refusal
        with pytest.raises(UnsupportedModel) as caught:
            BUILT_IN.build(config)
        assert refusal.reason in caught.value.what
        assert caught.value.help == refusal.help


def test_a_model_of_two_stacks_is_none_for_the_other_front_end() -> None:
    """Transformers has a class for it; ours is found by itself."""
    config = config_of("diffusion-gemma")
    assert choose(config) == "fx"
    with pytest.raises(UnsupportedModel):
        build_module(config, "export")


def test_no_architecture_is_claimed_twice() -> None:
    claimed = [name for family in FAMILIES for name in family.architectures]
    claimed += [name for refusal in REFUSED for name in refusal.architectures]
    assert len(claimed) == len(set(claimed))


def test_every_proof_is_a_test_over_all_cases() -> None:
    """``qdc families`` cannot name a test that is gone, or that leaves a family out."""
    for family in FAMILIES:
        assert family.proved
        for proof in family.proved:
            path, _, function = proof.test.partition("::")
            text = (ROOT / path).read_text(encoding="utf-8")
            assert f"def {function}(" in text
            own = family not in TABLES and "canvas" in path
            assert own or "params=list(CASES.values())" in text or '"name", PUBLISHED' in text


QWEN_7B = {
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
}


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (
            {
                "architectures": ["LLaDAModelLM"],
                "d_model": 4096,
                "n_layers": 32,
                "n_heads": 32,
                "n_kv_heads": 32,
                "mlp_hidden_size": 12288,
                "vocab_size": 126464,
                "embedding_size": 126464,
                "mask_token_id": 126336,
            },
            8_015_581_184,
        ),
        ({"architectures": ["DreamModel"], **QWEN_7B}, 7_615_616_512),
        (
            {
                "architectures": ["SDARForCausalLM"],
                "hidden_size": 2048,
                "num_hidden_layers": 28,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "intermediate_size": 6144,
                "vocab_size": 151936,
            },
            2_031_739_904,
        ),
        (
            {
                "architectures": ["Fast_dLLM_QwenForCausalLM"],
                "hidden_size": 1536,
                "num_hidden_layers": 28,
                "num_attention_heads": 12,
                "num_key_value_heads": 2,
                "intermediate_size": 8960,
                "vocab_size": 151936,
                "tie_word_embeddings": True,
            },
            1_543_714_304,
        ),
        (
            {
                "architectures": ["LLaDAMoEModelLM"],
                "hidden_size": 2048,
                "num_hidden_layers": 16,
                "num_attention_heads": 16,
                "num_experts": 64,
                "num_experts_per_tok": 8,
                "expert_intermediate_size": 1024,
                "vocab_size": 157184,
            },
            7_356_880_896,
        ),
    ],
    ids=["LLaDA-8B", "Dream-7B", "SDAR-1.7B", "Fast-dLLM-v2-1.5B", "LLaDA-MoE-7B-A1B"],
)
def test_published_sizes(config: dict[str, Any], parameters: int) -> None:
    """The sizes in the published configurations give the published count of parameters."""
    module, _ = BUILT_IN.build(config)
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters
