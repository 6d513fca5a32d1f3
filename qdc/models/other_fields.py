"""Fields of a ``config.json`` that a family neither reads nor holds to a value.

What published code does with such a field cannot be known here. One whose name speaks of what a
network computes is refused; every other one is counted and shown. A field that is not set, and one
that transformers writes for every model, says nothing.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

GENERIC = frozenset(
    (
        # what a file is, and who wrote it
        "_name_or_path", "architectures", "auto_map", "model_type", "transformers_version",
        "tokenizer_class", "task_specific_params", "finetuning_task",
        # by whom it is quantized, which is looked at before the rest
        "quantization_config",
        # how it is run and trained
        "_attn_implementation_autoset", "attn_implementation", "attention_dropout",
        "chunk_size_feed_forward", "dtype", "gradient_checkpointing", "initializer_range",
        "is_decoder", "output_attentions", "output_hidden_states", "output_scores", "return_dict",
        "return_dict_in_generate", "tf_legacy_loss", "tie_last_hidden_states", "torch_dtype",
        "torchscript", "use_bfloat16", "use_cache",
        # tokens that mean something to whoever decodes
        "bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id", "sep_token_id",
        # heads for classification
        "id2label", "label2id", "num_labels", "problem_type",
        # settings of transformers' own decoding, of before they had a file of their own
        "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample",
        "early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty",
        "forced_bos_token_id", "forced_eos_token_id", "length_penalty", "max_length", "min_length",
        "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "prefix",
        "remove_invalid_values", "repetition_penalty", "suppress_tokens", "temperature", "top_k",
        "top_p", "typical_p",
    )
)  # fmt: skip
"""Fields of any configuration of transformers that change no logits."""

COMPUTES = frozenset(
    (
        "act", "activation", "alibi", "attention", "attn", "base", "bias", "biases", "block",
        "blocks", "cap", "causal", "clip", "context", "cross", "dim", "embed", "embedding",
        "embeddings", "encoder", "eps", "epsilon", "expert", "experts", "factor", "ffn", "gate",
        "gated", "gating", "group", "groups", "head", "heads", "hidden", "kv", "layer",
        "layernorm", "layers", "len", "length", "logit", "logits", "mask", "mlp", "moe",
        "multiplier", "norm", "normalization", "normalize", "position", "positional", "positions",
        "qk", "qkv", "rank", "residual", "rmsnorm", "rope", "rotary", "router", "routed",
        "routing", "scale", "scales", "scaling", "seq", "shared", "size", "softcap",
        "softcapping", "sparse", "step", "theta", "tie", "tied", "topk", "tying", "vocab",
        "width", "window",
    )
)  # fmt: skip
"""Words by which the name of a field says that it is about what a network computes."""

TRAINS = frozenset(
    (
        "aux", "backend", "cache", "checkpoint", "checkpointing", "coef", "coefficient", "drop",
        "dropout", "dtype", "fuse", "fused", "impl", "implementation", "init", "initializer",
        "kernel", "loss", "parallel", "pdrop", "precision", "train", "training", "version",
    )
)  # fmt: skip
"""Words by which it says that it is about training or about speed, whatever else it says."""

MOST_NAMED = 20
"""Fields that are told by name."""
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def set_fields(config: Mapping[str, Any], known: Collection[str]) -> Iterator[str]:
    """Fields outside of ``known`` that are set: null, false and what is empty ask for nothing."""
    for name, value in config.items():
        nothing = value is None or value is False or value in ("", [], {})
        if name not in known and name not in GENERIC and not nothing:
            yield name


def refused_fields(
    config: Mapping[str, Any], known: Collection[str], alike: Mapping[str, object]
) -> Iterator[str]:
    """Say which fields sound like arithmetic that nobody here knows, ``field: problem`` each.

    Args:
        config: ``config.json``.
        known: fields that are read, held to a value, or known to be without influence.
        alike: further names under which others write a size, with its value here; one that
            repeats it is taken.
    """
    for name in set_fields(config, known):
        if name in alike and alike[name] == config[name]:
            continue
        if alike.get(name) is not None and _computes(name):
            yield (
                f"{name}: the other fields give {alike[name]!r}; mend the one that is wrong, or "
                f"take this one out (given {config[name]!r:.80})"
            )
        elif _computes(name):
            yield (
                f"{name}: unknown, and by its name it changes what is computed; take it out if the "
                f"model's own code does not read it (given {config[name]!r:.80})"
            )


def shown_fields(
    config: Mapping[str, Any], known: Collection[str], alike: Mapping[str, object]
) -> tuple[str, ...]:
    """Names of the set fields that nobody here knows, of a configuration that is not refused."""
    unknown = set_fields(config, known)
    return tuple(n for n in unknown if n not in alike or alike[n] != config[n])


def unused(fields: Collection[str], who: str) -> str:
    """Say of fields that they were not used; empty if there are none.

    Args:
        fields: of ``config.json``.
        who: does not know them.
    """
    if not fields:
        return ""
    named = [name if name.isidentifier() else f"{name!r:.80}" for name in fields][:MOST_NAMED]
    if len(fields) > MOST_NAMED:
        named.append(f"and {len(fields) - MOST_NAMED} more")
    which = "a field that" if len(fields) == 1 else f"{len(fields)} fields that"
    return f"config.json has {which} {who} does not know, not used: {', '.join(named)}"


def _computes(name: str) -> bool:
    words = {word.lower() for word in WORD.findall(name)}
    return bool(words & COMPUTES) and not words & TRAINS
