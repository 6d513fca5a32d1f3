"""LLaDA2.0 and 2.1: mixtures with a shared expert, a position sees its block and those before it.

Attention has grouped heads under one fused tensor, norms of heads, and rotates the first half of
each head. The first blocks are dense. Experts are chosen by sigmoid scores with a bias, first their
groups. The published class reads neither ``norm_topk_prob`` nor ``score_function``; it always does
what they say in the published configurations, so they are held to that. It has no field for the
block either, which its sampler brings: 32, unless ``block_size`` says otherwise here.

Source: shared facts on the ecosystem (A.1, A.4, B.4); the published configuration and modelling
code, as in ``tests/fixtures/published/llada2``.
"""

from qdc.models.family import COMPILES, Family, replays
from qdc.models.names import Names
from qdc.models.sizes import Fields

LLADA2 = Family(
    name="llada2",
    architectures=("LLaDA2MoeModelLM",),
    names=Names(
        embedding="model.word_embeddings",
        query="attention.query",
        key="attention.key",
        value="attention.value",
        fused="attention.query_key_value",
        query_norm="attention.query_layernorm",
        key_norm="attention.key_layernorm",
        output="attention.dense",
    ),
    fields=Fields(
        rotated="partial_rotary_factor",
        head_norms="use_qk_norm",
        block="block_size",
        experts="num_experts",
        normalized="",
        first_sparse="first_k_dense_replace",
        shared_experts="num_shared_experts",
        groups="n_group",
        groups_per_token="topk_group",
        routed_scale="routed_scaling_factor",
    ),
    defaults={
        "max_length": 16384,
        "eps": 1e-5,
        "rotated": 0.5,
        "head_norms": True,
        "block": 32,
        "experts": 16,
        "experts_per_token": 2,
        "scores": "sigmoid",
        "groups": 8,
        "groups_per_token": 4,
        "routed_scale": 2.5,
    },
    variants={
        "use_bias": (False,),
        "use_qkv_bias": (False,),
        "use_rmsnorm": (True,),
        "using_split_qkv_in_self_attention": (False,),
        "norm_head": (False,),
        "norm_softmax": (False,),
        "norm_topk_prob": (True,),
        "score_function": ("sigmoid",),
        "moe_router_enable_expert_bias": (True,),
        "router_dtype": ("fp32",),
    },
    inert=(
        "sliding_window",
        "max_window_layers",
        "embedding_dropout",
        "output_dropout",
        "output_router_logits",
    ),
    mask_token_id=156895,
    end_token_id=156892,
    decoding={"strategy": "dynamic", "threshold": 0.95},
    model_type="llada2_moe",
    published=("LLaDA2.0-mini, 2.1-mini 16B-A1B", "LLaDA2.0-flash, 2.1-flash 100B"),
    proved=(replays("llada2", "llada2-block8"), COMPILES),
)
