"""What LLaDA2 computes, from its equations: for its sampler alone, the family itself is refused.

Grouped attention with fused projections, norms of heads and rotation of half a head; experts are
chosen by sigmoid scores with a bias, first their groups. Weights keep their published names.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

REFUSED = Path(__file__).parents[1] / "fixtures" / "refused" / "llada2"


class Llada2:
    """A whole model in float32; ``block`` is that of its attention, None for all seeing all."""

    def __init__(self, block: int | None) -> None:
        """Load the checkpoint of the fixture."""
        self.block = block
        text = (REFUSED / "config.json").read_text(encoding="utf-8")
        self.config: dict[str, Any] = json.loads(text)
        stored = load_file(REFUSED / "model.safetensors")
        self.weights = {name: tensor.float() for name, tensor in stored.items()}

    def __call__(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """``i64[batch, T] -> [batch, T, vocabulary]``; without padding."""
        assert mask is None
        number = torch.arange(tokens.shape[1]) // (self.block or tokens.shape[1])
        hidden = self.weights["model.word_embeddings.weight"][tokens]
        for layer in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            asked = self._norm(hidden, f"{name}.input_layernorm")
            hidden = hidden + self._attention(asked, name, number)
            asked = self._norm(hidden, f"{name}.post_attention_layernorm")
            dense = layer < self.config["first_k_dense_replace"]
            hidden = hidden + (self._gated if dense else self._mixture)(asked, f"{name}.mlp")
        return self._linear(self._norm(hidden, "model.norm"), "lm_head")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self.weights[f"{name}.weight"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return functional.rms_norm(x, weight.shape, weight, self.config["rms_norm_eps"])

    def _attention(self, x: Tensor, name: str, number: Tensor) -> Tensor:
        config, name = self.config, f"{name}.attention"
        heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
        fused = torch.unflatten(
            self._linear(x, f"{name}.query_key_value"), -1, (-1, config["head_dim"])
        )
        query, key, value = torch.split(fused, [heads, shared, shared], dim=2)
        query = self._turned(self._norm(query, f"{name}.query_layernorm"))
        key = self._turned(self._norm(key, f"{name}.key_layernorm"))
        found = functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=number[:, None] >= number[None],
            enable_gqa=True,
        )
        return self._linear(found.transpose(1, 2).flatten(2), f"{name}.dense")

    def _turned(self, x: Tensor) -> Tensor:
        """Rotate the first columns of each head, half against half; the others stand still."""
        width = int(self.config["head_dim"] * self.config["partial_rotary_factor"])
        speed = self.config["rope_theta"] ** -(torch.arange(0, width, 2) / width)
        angle = torch.arange(x.shape[1])[:, None] * speed
        cosine, sine = angle.cos()[:, None], angle.sin()[:, None]
        first, second = x[..., :width].chunk(2, dim=-1)
        turned = (first * cosine - second * sine, second * cosine + first * sine)
        return torch.cat((*turned, x[..., width:]), dim=-1)

    def _gated(self, x: Tensor, name: str) -> Tensor:
        gate = functional.silu(self._linear(x, f"{name}.gate_proj"))
        return self._linear(gate * self._linear(x, f"{name}.up_proj"), f"{name}.down_proj")

    def _mixture(self, x: Tensor, name: str) -> Tensor:
        shares = self._shares(x, name)
        total = self._gated(x, f"{name}.shared_experts")
        for expert in range(self.config["num_experts"]):
            total = total + shares[..., expert, None] * self._gated(x, f"{name}.experts.{expert}")
        return total

    def _shares(self, x: Tensor, name: str) -> Tensor:
        """Of each expert in each token; the bias decides who is chosen, and weighs nothing."""
        config = self.config
        scores = self._linear(x, f"{name}.gate").sigmoid()
        biased = scores + self.weights[f"{name}.gate.expert_bias"]
        grouped = torch.unflatten(biased, -1, (config["n_group"], -1))
        best = grouped.topk(2, dim=-1).values.sum(-1).topk(config["topk_group"], dim=-1).indices
        outside = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, value=False)
        biased = grouped.masked_fill(outside[..., None], -torch.inf).flatten(-2)
        chosen = biased.topk(config["num_experts_per_tok"], dim=-1).indices
        picked = scores.gather(-1, chosen)
        picked = picked / picked.sum(-1, keepdim=True) * config["routed_scaling_factor"]
        return torch.zeros_like(scores).scatter(-1, chosen, picked)
