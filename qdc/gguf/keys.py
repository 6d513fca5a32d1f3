"""The keys of a GGUF file that say what the model computes. Source: engines-2026.md, GGUF."""

from typing import Any

from qdc.gguf.names import Naming
from qdc.version import __version__


def write_keys(writer: Any, model: Naming, name: str, file_type: int) -> None:
    """Write the keys of the architecture.

    Args:
        writer: a ``gguf.GGUFWriter``.
        model: sizes and family.
        name: what the file calls the model.
        file_type: number of the type that most weights have.
    """
    sizes, shift = model.sizes, bool(model.family.logits_shift)
    keys = sizes.key_heads or sizes.heads
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)
    writer.add_quantized_by(f"qdc {__version__}")
    writer.add_vocab_size(sizes.rows)
    writer.add_context_length(sizes.max_length)
    writer.add_embedding_length(sizes.width)
    writer.add_block_count(sizes.blocks)
    if sizes.hidden is not None:
        writer.add_feed_forward_length(sizes.hidden)
    elif sizes.expert_hidden is not None:
        writer.add_feed_forward_length(sizes.expert_hidden)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(keys)
    writer.add_key_length(sizes.head_columns)
    writer.add_value_length(sizes.head_columns)
    writer.add_rope_dimension_count(sizes.head_columns)
    writer.add_rope_freq_base(sizes.theta)
    writer.add_layer_norm_rms_eps(sizes.eps)
    if sizes.experts is not None and sizes.expert_hidden is not None:
        writer.add_expert_count(sizes.experts)
        writer.add_expert_used_count(sizes.experts_per_token)
        writer.add_expert_feed_forward_length(sizes.expert_hidden)
    writer.add_causal_attention(False)
    # Dream's files leave the key out, whose default is true; said aloud it means the same.
    writer.add_diffusion_shift_logits(shift)
    writer.add_mask_token_id(sizes.mask_token)
