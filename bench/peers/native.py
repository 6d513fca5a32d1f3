"""The embedded model as the Hugging Face model that libraries know how to walk.

LLaDA is a Llama block with full attention, so ``LlamaForCausalLM`` computes it once its attention
looks both ways. Libraries build causal masks, hide the last token or cache what they were given;
none of it can matter here, for the attention below ignores every mask. No sample is padded.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

import qdc
from qdc.errors import QdcError
from qdc.models.decoder import Decoder
from qdc.models.llada import LLADA

LEAVES = {
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}
"""Linears of a block: their name there, ours here."""
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ff_norm"}
OUTER = {
    "model.embed_tokens": "model.transformer.wte",
    "model.norm": "model.transformer.ln_f",
    "lm_head": "model.transformer.ff_out",
}
TOLERANCE = 1e-4
COMPARED = 32
"""Samples on which blocks are compared inside a library; its first input is, on all of them."""


class BidirectionalAttention(LlamaAttention):
    """Llama's attention over all positions, whatever mask it is handed."""

    def __init__(self, config: LlamaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.is_causal = False

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """``hidden_states [batch, T, width]`` and the rest by name; the mask is dropped."""
        mixed: tuple[Tensor, Tensor] = super().forward(*args, **kwargs | {"attention_mask": None})
        return mixed


def names(layers: int) -> dict[str, str]:
    """Our path of every linear that is quantized, by its path in the native model."""
    return {
        f"model.layers.{index}.{theirs}": f"model.transformer.blocks.{index}.{ours}"
        for index in range(layers)
        for theirs, ours in LEAVES.items()
    }


def build_native(original: Decoder) -> LlamaForCausalLM:
    """Return the same function as ``original``, f32, in eval mode, its weights copied."""
    sizes = original.sizes
    build: Any = LlamaConfig  # Its annotations lack what every configuration takes.
    settings = build(
        vocab_size=sizes.rows,
        hidden_size=sizes.width,
        intermediate_size=sizes.hidden,
        num_hidden_layers=sizes.blocks,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.key_heads or sizes.heads,
        max_position_embeddings=sizes.max_length,
        rms_norm_eps=sizes.eps,
        rope_parameters={"rope_type": "default", "rope_theta": sizes.theta},
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        use_cache=False,
        pad_token_id=None,
    )
    native: LlamaForCausalLM = LlamaForCausalLM(settings)
    for index, layer in enumerate(native.model.layers):
        layer.self_attn = BidirectionalAttention(settings, index)
    pairs = dict(OUTER) | names(sizes.blocks)
    for index in range(sizes.blocks):
        for theirs, ours in NORMS.items():
            pairs[f"model.layers.{index}.{theirs}"] = f"model.transformer.blocks.{index}.{ours}"
    state = original.state_dict()
    native.load_state_dict(
        {f"{k}.weight": state[f"{v}.weight"].float().clone() for k, v in pairs.items()},
        strict=True,
    )
    native.train(False)
    return native


def open_pair(folder: Path, probe: Tensor) -> tuple[Decoder, LlamaForCausalLM]:
    """Load our module and the native one, and prove that they are one function.

    ``probe`` is ``i64[batch, T]``. Raises QdcError if a logit differs by more than 1e-4.
    """
    original = qdc.load_original(folder)
    if not isinstance(original, Decoder) or original.layout.names != LLADA.names:
        raise QdcError(
            "peers know the LLaDA layout only, and the model is of another family",
            help="benchmark examples/tiny-llada",
        )
    native = build_native(original)
    with torch.no_grad():
        apart = float((native(probe).logits - original(probe)).abs().max())
    if not apart <= TOLERANCE:
        raise QdcError(
            f"the native model's logits are {apart:.1e} away from ours, at most {TOLERANCE:g} is "
            "rounding",
            help="check bench/peers/native.py against this version of transformers",
        )
    return original, native


def dense_weights(native: nn.Module, layers: int) -> dict[str, Tensor]:
    """Read the weights back under our names, ``f32[rows, columns]``."""
    return {
        ours: native.get_parameter(f"{theirs}.weight").detach().float().clone()
        for theirs, ours in names(layers).items()
    }


class BlockWatch:
    """Compares the blocks that a library runs with ours, on the very inputs that they are given.

    Every library first forwards a block with full-precision weights over all samples, for its
    targets or its statistics. ``apart`` is the largest difference over these outputs, in units of
    their root mean square, and must be rounding; the first block must also read our samples, in
    order. Later calls, on weights that are being quantized, are not looked at.
    """

    def __init__(self, original: Decoder, native: LlamaForCausalLM, samples: Tensor) -> None:
        self.apart = 0.0
        self.seen = [0] * len(native.model.layers)
        self._original = original.get_submodule("model.transformer")
        self._samples = samples
        self._handles = [
            layer.register_forward_hook(self._hook(index), with_kwargs=True)
            for index, layer in enumerate(native.model.layers)
        ]

    def _hook(self, index: int) -> Callable[..., None]:
        def compare(module: nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> None:
            start = self.seen[index]
            if torch.is_grad_enabled() or start >= len(self._samples):
                return
            read = inputs[0] if inputs else named["hidden_states"]
            found = output[0] if isinstance(output, tuple) else output
            self.seen[index] = start + len(found)
            if index == 0:
                batch = self._samples[start : self.seen[index]]
                self._add(read, self._original.get_submodule("wte")(batch))
            if start < COMPARED:
                self._add(
                    found, self._original.get_submodule(f"blocks.{index}")(read.float(), None)
                )

        # A library may compile its blocks; this is not to be traced with them.
        disable: Callable[..., Callable[..., None]] = torch.compiler.disable
        return disable(compare)

    def _add(self, found: Tensor, expected: Tensor) -> None:
        scale = expected.square().mean().sqrt()
        self.apart = max(self.apart, float((found.float() - expected).abs().max() / scale))

    def finish(self) -> str:
        """Stop watching; return a note, or raise QdcError if the library saw another model."""
        for handle in self._handles:
            handle.remove()
        if any(count < len(self._samples) for count in self.seen) or not self.apart <= TOLERANCE:
            raise QdcError(
                f"the library's block outputs are {self.apart:.1e} of their size away from ours "
                f"(samples compared, block by block: {self.seen})",
                help="a mask, a position or a dtype was changed on the way",
            )
        return f"block outputs inside the library are ours within {self.apart:.1e} of their size"
