"""LLaDA: a Llama-shaped transformer with full bidirectional attention, under its published names.

Source: shared facts on LLaDA-8B (ecosystem A.2). Position i of the logits predicts token i. The
blocks hold their projections themselves. Unpublished variants are refused.
"""

from qdc.models.family import COMPILES, Family, equals, replays
from qdc.models.names import Names
from qdc.models.sizes import Fields

LLADA = Family(
    name="llada",
    architectures=("LLaDAModelLM",),
    names=Names(
        embedding="model.transformer.wte",
        blocks="model.transformer.blocks",
        final_norm="model.transformer.ln_f",
        head="model.transformer.ff_out",
        attention_norm="attn_norm",
        query="q_proj",
        key="k_proj",
        value="v_proj",
        output="attn_out",
        feed_forward_norm="ff_norm",
        gate="ff_proj",
        up="up_proj",
        down="ff_out",
    ),
    fields=Fields(
        width="d_model",
        blocks="n_layers",
        heads="n_heads",
        key_heads="n_kv_heads",
        head_width="",
        hidden="mlp_hidden_size",
        embeddings="embedding_size",
        max_length="max_sequence_length",
        tied="",
    ),
    defaults={"max_length": 4096, "eps": 1e-5},
    variants={
        "block_type": ("llama",),
        "block_group_size": (1,),
        "activation_type": ("silu",),
        "layer_norm_type": ("rms",),
        "layer_norm_with_affine": (True,),
        "rope": (True,),
        "rope_full_precision": (True,),
        "alibi": (False,),
        "scale_logits": (False,),
        "input_emb_norm": (False,),
        "weight_tying": (False,),
        "include_bias": (False,),
        "include_qkv_bias": (False,),
        "bias_for_layer_norm": (False,),
        "multi_query_attention": (False,),
        "attention_layer_norm": (False,),
        "clip_qkv": (None,),
    },
    inert=(
        "mlp_ratio",  # mlp_hidden_size stands before it, and is needed here
        "alibi_bias_max",
        "attention_layer_norm_with_affine",
        "embedding_dropout",
        "residual_dropout",
        "flash_attention",
        "init_cutoff_factor",
        "init_device",
        "init_fn",
        "init_std",
        "precision",
        "tie_word_embeddings",  # the published class reads weight_tying
    ),
    rotates_early=True,
    published_without="generate.py of ML-GSAI/LLaDA",
    model_type="llada",
    published=("LLaDA Base, Instruct, 1.5 8B",),
    proved=(
        equals("LlamaForCausalLM, keys renamed, with is_causal=False"),
        replays("llada", "llada-gqa"),
        COMPILES,
    ),
)
