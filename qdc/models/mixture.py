"""Mixtures of experts on the Qwen3 layout: LLaDA-MoE and SDAR-MoE.

Source: shared facts on the ecosystem (A.1, A.4). Both route by softmax to the best experts of each
token. LLaDA-MoE takes their weights as they are: its published class never reads
``norm_topk_prob``. SDAR-MoE makes them add up to 1 where that field says so; without the field it
does not, and without ``head_dim`` heads share the width evenly, both as its published configuration
class has it. The mask tokens stand in the tokenizers, not in the published ``config.json``.
"""

from qdc.models.family import COMPILES, Family, equals, replays
from qdc.models.sdar import DEFAULTS, INERT, MASK
from qdc.models.sizes import Fields

ROUTER_INERT = ("router_aux_loss_coef", "output_router_logits")
"""Of both: how the router is trained."""

LLADA_MOE = Family(
    name="llada-moe",
    architectures=("LLaDAMoEModelLM",),
    fields=Fields(
        hidden="dense_intermediate_size",
        head_norms="qk_layernorm",
        experts="num_experts",
        expert_hidden="expert_intermediate_size",
        normalized="",
        sparse_blocks="moe_layer_freq",
    ),
    defaults={
        "max_length": 8192,
        "eps": 1e-5,
        "head_norms": True,
        "experts": 64,
        "experts_per_token": 8,
    },
    variants={
        "attention_bias": (False,),
        "shared_expert_intermediate_size": (None,),
        "clip_qkv": (None,),
        "moe_router_score_function": ("softmax",),
        "moe_router_enable_expert_bias": (False,),
        "routed_scaling_factor": (1, None),
        "router_num_group": (None,),
        "router_topk_group": (None,),
    },
    inert=(
        *ROUTER_INERT,
        "norm_topk_prob",
        "intermediate_size",  # the published class reads those of dense and of sparse blocks
    ),
    mask_token_id=156895,
    model_type="llada",
    published=("LLaDA-MoE-7B-A1B Base, Instruct",),
    proved=(
        equals("Qwen3MoeForCausalLM with is_causal=False"),
        replays("llada-moe", "llada-moe-norm"),
        COMPILES,
    ),
)
SDAR_MOE = Family(
    name="sdar-moe",
    architectures=("SDARMoeForCausalLM",),
    fields=Fields(
        block="block_size",
        experts="num_experts",
        sparse_step="decoder_sparse_step",
        dense_blocks="mlp_only_layers",
    ),
    defaults={**DEFAULTS, "experts": 128, "experts_per_token": 8},
    variants={"attention_bias": (False,)},
    inert=(*INERT, *ROUTER_INERT),
    mask_token_id=MASK,
    published_without="generate.py of JetAstra/SDAR",
    model_type="sdar_moe",
    published=("SDAR 30B-A3B Chat, Sci",),
    proved=(
        equals("Qwen3MoeForCausalLM with a block mask"),
        replays("sdar-moe", code="a composite of published code"),
        COMPILES,
    ),
)
