"""Every field of a published ``config.json`` is read, held to one value, or without influence."""

from typing import Any

import pytest
from transformers import PretrainedConfig

from qdc.errors import UnsupportedModel
from qdc.models.families import FAMILIES
from qdc.models.family import Family
from qdc.models.other_fields import GENERIC, unused
from qdc.models.sizes import FLAGS, Sizes
from qdc.models.variants import SHARED
from tests.support.published import config_of

Table = dict[str, Any]
LISTS = {"sparse_blocks", "dense_blocks"}
"""Sizes that are lists of numbers."""
LINEAR: Table = {"rope_type": "linear", "factor": 2.0}
HELD_BY_ALL: Table = {
    "hidden_act": "gelu",
    "use_sliding_window": True,
    "partial_rotary_factor": 0.5,
    "layer_types": ["full_attention", "sliding_attention"],
    "rope_scaling": LINEAR,
    "rope_parameters": LINEAR,
}
"""Values that must be refused."""
INERT_IN_ALL: Table = {
    "architectures": None,
    "auto_map": {"AutoModel": "modeling.Other"},
    "model_type": "other",
    "transformers_version": "9.9",
    "torch_dtype": "float32",
    "dtype": "float32",
    "use_cache": True,
    "attention_dropout": 0.5,
    "initializer_range": 1.0,
    "bos_token_id": 7,
    "eos_token_id": 7,
    "pad_token_id": 7,
}
"""Other values, which must change nothing."""
QWEN_USED: Table = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 100,
    "vocab_size": 170,
    "max_position_embeddings": 99,
    "rope_theta": 9.0,
    "rms_norm_eps": 1e-3,
    "mask_token_id": 3,
    "tie_word_embeddings": True,
}
"""Other values, which must give other sizes."""
QWEN_INERT: Table = {"sliding_window": 16, "max_window_layers": 1}
SDAR_INERT: Table = {
    **QWEN_INERT,
    "attn_implementation": "sdpa",
    "debug": True,
    "ep_size": 2,
    "fuse_cross_entropy": False,
    "micro_forward": True,
    "skip_checkpoint": True,
    "use_deepep": True,
}
ROUTER_INERT: Table = {"router_aux_loss_coef": 1.0, "output_router_logits": True}

USED: dict[str, Table] = {
    "llada": {
        "d_model": 128,
        "n_layers": 3,
        "n_heads": 8,
        "n_kv_heads": 2,
        "mlp_hidden_size": 100,
        "vocab_size": 159,
        "embedding_size": 170,
        "max_sequence_length": 99,
        "rope_theta": 9.0,
        "rms_norm_eps": 1e-3,
        "mask_token_id": 3,
    },
    "dream": QWEN_USED,
    "sdar": {**QWEN_USED, "block_size": 8},
    "fast-dllm": {**QWEN_USED, "bd_size": 8},
    "llada-moe": {
        **{field: value for field, value in QWEN_USED.items() if field != "intermediate_size"},
        "dense_intermediate_size": 100,
        "qk_layernorm": False,
        "num_experts": 9,
        "num_experts_per_tok": 2,
        "expert_intermediate_size": 20,
        "moe_layer_freq": [0, 1],
    },
    "sdar-moe": {
        **QWEN_USED,
        "block_size": 8,
        "num_experts": 9,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 20,
        "norm_topk_prob": False,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [1],
    },
    "llada2": {
        **QWEN_USED,
        "partial_rotary_factor": 0.25,
        "use_qk_norm": False,
        "block_size": 8,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 20,
        "first_k_dense_replace": 0,
        "num_shared_experts": 2,
        "n_group": 2,
        "topk_group": 3,
        "routed_scaling_factor": 1.5,
    },
    "stable-diffcoder": {**QWEN_USED, "block_size": 8},
}
HELD: dict[str, Table] = {
    "llada": {
        "block_type": "sequential",
        "block_group_size": 2,
        "activation_type": "gelu",
        "layer_norm_type": "default",
        "layer_norm_with_affine": False,
        "rope": False,
        "rope_full_precision": False,
        "alibi": True,
        "scale_logits": True,
        "input_emb_norm": True,
        "weight_tying": True,
        "include_bias": True,
        "include_qkv_bias": True,
        "bias_for_layer_norm": True,
        "multi_query_attention": True,
        "attention_layer_norm": True,
        "clip_qkv": 8.0,
    },
    "dream": {"use_mrope": True, "full_attn_mask": False},
    "sdar": {"attention_bias": True},
    "fast-dllm": {},
    "llada-moe": {
        "attention_bias": True,
        "shared_expert_intermediate_size": 16,
        "clip_qkv": 8.0,
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "routed_scaling_factor": 2.5,
        "router_num_group": 4,
        "router_topk_group": 2,
    },
    "sdar-moe": {"attention_bias": True},
    "llada2": {
        "use_bias": True,
        "use_qkv_bias": True,
        "use_rmsnorm": False,
        "using_split_qkv_in_self_attention": True,
        "norm_head": True,
        "norm_softmax": True,
        "norm_topk_prob": False,
        "score_function": "softmax",
        "moe_router_enable_expert_bias": False,
        "router_dtype": "bf16",
    },
    "stable-diffcoder": {"attention_bias": True, "mlp_bias": True},
}
INERT: dict[str, Table] = {
    "llada": {
        "mlp_ratio": 8,  # what mlp_hidden_size stands before, which is needed here
        "alibi_bias_max": 4.0,
        "attention_layer_norm_with_affine": False,
        "embedding_dropout": 0.5,
        "residual_dropout": 0.5,
        "flash_attention": True,
        "init_cutoff_factor": 3.0,
        "init_device": "cpu",
        "init_fn": "normal",
        "init_std": 1.0,
        "precision": "fp32",
        "tie_word_embeddings": True,  # the published class reads weight_tying
    },
    "dream": QWEN_INERT,
    "sdar": SDAR_INERT,
    "fast-dllm": {**QWEN_INERT, "conplemenrary_mask": False},
    "llada-moe": {**ROUTER_INERT, "norm_topk_prob": True, "intermediate_size": 7},
    "sdar-moe": {**SDAR_INERT, **ROUTER_INERT},
    "llada2": {
        **QWEN_INERT,
        "embedding_dropout": 0.5,
        "output_dropout": 0.5,
        "output_router_logits": True,
    },
    "stable-diffcoder": {"pretraining_tp": 2},
}
REPEATED = {"rotary_dim"}
"""Fields of published configurations that say again what others give."""
PARTIAL = {"llada2"}
"""Families that rotate a part of each head."""
NAMES = sorted(family.name for family in FAMILIES)


def held_by(name: str) -> Table:
    """Values that must be refused in a family."""
    common = {k: v for k, v in HELD_BY_ALL.items() if k not in USED[name]}
    return {**common, **HELD[name]}


def family(name: str) -> Family:
    return next(each for each in FAMILIES if each.name == name)


def read(name: str, **fields: Any) -> Sizes:
    return family(name).read({**config_of(name), **fields})


def refused(name: str, field: str, value: object) -> str:
    """What is said of the field of that value, if it is refused and no other one is."""
    with pytest.raises(UnsupportedModel) as caught:
        read(name, **{field: value})
    assert {place.split(":")[0].split(".")[0] for place in caught.value.where} == {field}
    return "; ".join(caught.value.where)


def cases(tables: dict[str, Table]) -> list[Any]:
    return [
        pytest.param(name, field, value, id=f"{name}-{field}")
        for name in NAMES
        for field, value in tables[name].items()
    ]


@pytest.mark.parametrize(("name", "field", "value"), cases(USED))
def test_a_field_is_honoured(name: str, field: str, value: object) -> None:
    also: Table = {"moe_layer_freq": None} if field == "num_hidden_layers" else {}
    if name in PARTIAL:
        also |= {"rotary_dim": None}
    assert read(name, **{**also, field: value}) != read(name, **also)


@pytest.mark.parametrize(("name", "field", "value"), cases({name: held_by(name) for name in NAMES}))
def test_a_field_is_held(name: str, field: str, value: object) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        read(name, **{field: value})
    assert {place.split(":")[0].split(".")[0] for place in caught.value.where} == {field}


@pytest.mark.parametrize(
    ("name", "field", "value"), cases({name: {**INERT_IN_ALL, **INERT[name]} for name in NAMES})
)
def test_a_field_changes_nothing(name: str, field: str, value: object) -> None:
    assert read(name, **{field: value}) == read(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_tables_are_complete(name: str) -> None:
    """Every field of the published configuration, and every field that the family knows."""
    held, used = held_by(name), USED[name]
    tables = [set(used), set(held), {*INERT[name], *INERT_IN_ALL}]
    assert sum(map(len, tables)) == len(set().union(*tables))
    assert set(config_of(name)) <= set().union(*tables, REPEATED)
    assert set(family(name).fields.present().values()) == set(used)
    held_here = {*family(name).variants, *SHARED, "layer_types", "rope_scaling", "rope_parameters"}
    assert held_here - set(used) == set(held)
    assert {*family(name).inert, *GENERIC} == {*INERT[name], *GENERIC}
    assert set(INERT_IN_ALL) <= GENERIC


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_rotary_base_is_that_of_the_published_classes(name: str) -> None:
    config = {key: value for key, value in config_of(name).items() if key != "rope_theta"}
    assert family(name).read(config).theta == 10000.0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["rope_parameters", "rope_scaling"])
def test_a_rotary_base_may_stand_in_an_object(name: str, place: str) -> None:
    config = {key: value for key, value in config_of(name).items() if key != "rope_theta"}
    config[place] = {"rope_type": "default", "rope_theta": 7.0}
    assert family(name).read(config).theta == 7.0
    assert family(name).read({**config, "rope_theta": 7}).theta == 7.0
    for field in {"rope_theta", "rope_parameters", "rope_scaling"} - {place}:
        other = 8.0 if field == "rope_theta" else {"rope_theta": 8.0}
        with pytest.raises(UnsupportedModel) as caught:
            family(name).read({**config, field: other})
        (told,) = caught.value.where
        assert f"{place}.rope_theta 7.0" in told
        assert "8.0" in told


HARMLESS: list[Table] = [
    {"rope_scaling": None},
    {"rope_scaling": {}},
    {"rope_scaling": {"type": "default"}},
    {"rope_scaling": {"type": "default", "rope_type": "default", "factor": None}},
    {"use_sliding_window": None},
    {"layer_types": None},
    {"layer_types": ["full_attention", "full_attention"]},
    {"hidden_act": "swish"},
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fields", HARMLESS, ids=str)
def test_harmless_spellings_are_taken(name: str, fields: Table) -> None:
    assert read(name, **fields) == read(name)


@pytest.mark.parametrize("name", NAMES)
def test_null_stands_for_false_and_no_number_for_a_truth_value(name: str) -> None:
    flags = {field: v[0] for field, v in family(name).variants.items() if type(v[0]) is bool}
    for field, allowed in flags.items():
        if allowed is False:
            assert read(name, **{field: None}) == read(name)
        else:
            refused(name, field, None)
    sizes = {"tie_word_embeddings", "norm_topk_prob", "qk_layernorm"} & set(USED[name])
    for field in sizes:
        assert read(name, **{field: None}) == read(name, **{field: False})
    for field in sizes.union(flags):
        for number in (0, 1, "true"):
            assert f"(given {number!r})" in refused(name, field, number)


@pytest.mark.parametrize("name", NAMES)
def test_a_number_is_no_text_and_no_truth_value(name: str) -> None:
    fields = family(name).fields.present()
    for size in fields.keys() - {*FLAGS, *LISTS, "scores"}:
        for value in ("8", True, [8]):
            told = refused(name, fields[size], value)
            assert "valid integer" in told or "valid number" in told
            assert f"(given {value!r})" in told
    for size in fields.keys() & LISTS:
        assert "(given '1')" in refused(name, fields[size], ["1"])
        assert "(given 1)" in refused(name, fields[size], 1)
    assert "8.5" in refused(name, fields["width"], 8.5)


@pytest.mark.parametrize("name", NAMES)
def test_a_rotated_share_may_stand_in_an_object(name: str) -> None:
    share = 0.5 if name in PARTIAL else 1.0
    inside = {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": share}}
    assert read(name, **inside) == read(name) == read(name, partial_rotary_factor=share)
    if name not in PARTIAL:
        return
    config = {key: value for key, value in config_of(name).items() if key != "rotary_dim"}
    del config["partial_rotary_factor"]
    inside["rope_parameters"]["partial_rotary_factor"] = 0.25
    assert family(name).read({**config, **inside}).rotated == 0.25
    with pytest.raises(UnsupportedModel, match="variant") as caught:
        family(name).read({**config, **inside, "partial_rotary_factor": 0.5})
    assert "two shares" in caught.value.where[0]


ARITHMETIC: Table = {
    "attention_scale": 0.5,
    "attnLogitSoftcapping": 30.0,
    "embedding_multiplier": 12,
    "max_seq_len": 9,
    "block_length": 16,
    "layer_norm_epsilon": 1e-3,
    "use_regular_causal": True,
    "mask_id": 3,
    "num_key_value_groups": 2,
    "rope_interleaved": True,
    "shared_expert_gate": True,
    "sparse_step_of_experts": 3,
}
"""Fields that no family has, and that are about what a network computes."""
SHOWN: Table = {
    "trained_by": "somebody",
    "_commit_hash": "0123",
    "lora_alpha": 16,
    "router_z_loss_coef": 0.1,
    "attention_probs_dropout_prob": 0.5,
    "hidden_dropout": 0.5,
    "dataset": [1],
    "count": 0,
}
"""Fields that no family has, and that are about something else."""


@pytest.mark.parametrize("name", NAMES)
def test_every_field_of_the_published_configurations_is_known(name: str) -> None:
    assert family(name).unused(config_of(name)) == ()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("field", "value"), ARITHMETIC.items(), ids=str)
def test_an_unknown_field_that_sounds_like_arithmetic_is_refused(
    name: str, field: str, value: object
) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        read(name, **{field: value})
    (told,) = caught.value.where
    assert told.startswith(f"{field}: unknown")
    assert repr(value) in told
    empty: tuple[object, ...] = (None, False, "", [], {})
    for nothing in empty:
        assert read(name, **{field: nothing}) == read(name)


@pytest.mark.parametrize("name", NAMES)
def test_any_other_unknown_field_is_shown(name: str) -> None:
    config = {**config_of(name), **SHOWN, "nothing": None, "temperature": 2.0}
    assert family(name).read(config) == read(name)
    assert family(name).unused(config) == tuple(SHOWN)


@pytest.mark.parametrize("name", NAMES)
def test_a_size_may_stand_twice_if_it_is_the_same(name: str) -> None:
    sizes, fields = read(name), set(family(name).fields.present().values())
    twice: Table = {
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.blocks,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.key_heads,
        "head_dim": sizes.head_columns,
    }
    twice = {field: value for field, value in twice.items() if field not in fields}
    assert read(name, **twice) == sizes
    assert family(name).unused({**config_of(name), **twice}) == ()
    for field, value in twice.items():
        with pytest.raises(UnsupportedModel, match="variant"):
            read(name, **{field: value + 2})


@pytest.mark.parametrize("name", NAMES)
def test_what_transformers_writes_for_every_model_is_known(name: str) -> None:
    written = PretrainedConfig(id2label={0: "a", 1: "b", 2: "c"}).to_dict()
    assert family(name).unused({**written, **config_of(name)}) == ()


def test_unused_fields_are_told_in_words() -> None:
    assert unused((), "sdar") == ""
    assert unused(("a",), "sdar") == (
        "config.json has a field that sdar does not know, not used: a"
    )
    assert unused(("a", "b"), "sdar") == (
        "config.json has 2 fields that sdar does not know, not used: a, b"
    )
    many = unused(("\x1b[2J", *(f"f{number}" for number in range(30))), "sdar")
    assert many.endswith("f17, f18, and 11 more")
    assert r"'\x1b[2J'" in many


def test_a_mixture_of_sdar_has_the_defaults_of_its_published_class() -> None:
    config = config_of("sdar-moe")
    for field in ("norm_topk_prob", "head_dim"):
        config.pop(field)
    sizes = family("sdar-moe").read(config)
    assert sizes.normalized is False
    assert sizes.head_columns == config["hidden_size"] // config["num_attention_heads"]


ODD: list[tuple[str, object]] = [
    ("rope_theta", True),
    ("mask_token_id", True),
    ("rope_scaling", "linear"),
    ("rope_scaling", {"rope_type": "dynamic"}),
    ("rope_scaling", {"type": "yarn", "rope_type": "default"}),
    ("rope_scaling", {"rope_type": "default", "partial_rotary_factor": 2.0}),
    ("rope_scaling", {"mrope_section": [2, 3, 3]}),
    ("rope_parameters", {"rope_theta": "large"}),
    ("rope_parameters", {"rope_theta": -1.0}),
    ("rope_parameters", {"full_attention": {"rope_theta": 7.0}}),
    ("partial_rotary_factor", True),
    ("layer_types", "full_attention"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("field", "value"), ODD, ids=str)
def test_what_is_not_plain_is_refused(name: str, field: str, value: object) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        read(name, **{field: value})
    assert {place.split(":")[0].split(".")[0] for place in caught.value.where} == {field}
