"""What LLaDA2 computes, from its equations: it has no class in transformers to compare with.

They were tried against what its published code computes (``tests/models/test_llada2.py``). Grouped
attention with fused projections, norms of heads and rotation of a part of each head; experts are
chosen by sigmoid scores with a bias, first their groups. Weights keep their published names.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

State = dict[str, Tensor]
PARTS = ("query", "key", "value")
FUSED = "query_key_value"


class Llada2(nn.Module):
    """A whole model in float32, called as classes of transformers are."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Build without weights."""
        super().__init__()
        self.config = config
        shapes = llada2_shapes(config)
        self.weights = nn.ParameterDict({_flat(n): torch.zeros(s) for n, s in shapes.items()})

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        """``i64[batch, T]``, ``bool[batch, 1, T, T]`` of who sees whom."""
        hidden = self._of("model.word_embeddings")[input_ids]
        for layer in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            asked = self._norm(hidden, f"{name}.input_layernorm")
            hidden = hidden + self._attention(asked, name, attention_mask)
            asked = self._norm(hidden, f"{name}.post_attention_layernorm")
            dense = layer < self.config["first_k_dense_replace"]
            hidden = hidden + (self._gated if dense else self._mixture)(asked, f"{name}.mlp")
        logits = self._linear(self._norm(hidden, "model.norm"), "lm_head")
        return SimpleNamespace(logits=logits)

    def _of(self, name: str, role: str = "weight") -> Tensor:
        found: Tensor = self.weights[_flat(f"{name}.{role}")]
        return found

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self._of(name))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight = self._of(name)
        return functional.rms_norm(x, list(weight.shape), weight, self.config["rms_norm_eps"])

    def _attention(self, x: Tensor, name: str, mask: Tensor | None) -> Tensor:
        config, name = self.config, f"{name}.attention"
        heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
        fused = torch.unflatten(self._linear(x, f"{name}.{FUSED}"), -1, (-1, config["head_dim"]))
        query, key, value = torch.split(fused, [heads, shared, shared], dim=2)
        query = self._turned(self._norm(query, f"{name}.query_layernorm"))
        key = self._turned(self._norm(key, f"{name}.key_layernorm"))
        found = functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=mask,
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
        biased = scores + self._of(f"{name}.gate", "expert_bias")
        grouped = torch.unflatten(biased, -1, (config["n_group"], -1))
        best = grouped.topk(2, dim=-1).values.sum(-1).topk(config["topk_group"], dim=-1).indices
        outside = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, value=False)
        biased = grouped.masked_fill(outside[..., None], -torch.inf).flatten(-2)
        chosen = biased.topk(config["num_experts_per_tok"], dim=-1).indices
        picked = scores.gather(-1, chosen)
        if config["num_experts_per_tok"] > 1:
            picked = picked / picked.sum(-1, keepdim=True)
        return torch.zeros_like(scores).scatter(
            -1, chosen, picked * config["routed_scaling_factor"]
        )


def _flat(name: str) -> str:
    return name.replace(".", "/")


def named_flat(state: State) -> State:
    """Published tensors under the names of this module."""
    return {f"weights.{_flat(name)}": tensor for name, tensor in state.items()}


def llada2_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every published tensor name, with its shape."""
    width, vocabulary, head = config["hidden_size"], config["vocab_size"], config["head_dim"]
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.word_embeddings.weight": (vocabulary, width)}
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        attention = f"{name}.attention"
        shapes |= {
            f"{name}.input_layernorm.weight": (width,),
            f"{attention}.{FUSED}.weight": ((heads + 2 * shared) * head, width),
            f"{attention}.query_layernorm.weight": (head,),
            f"{attention}.key_layernorm.weight": (head,),
            f"{attention}.dense.weight": (width, heads * head),
            f"{name}.post_attention_layernorm.weight": (width,),
        }
        if layer < config["first_k_dense_replace"]:
            shapes |= _gated_shapes(f"{name}.mlp", width, config["intermediate_size"])
            continue
        hidden = config["moe_intermediate_size"]
        shapes[f"{name}.mlp.gate.weight"] = (config["num_experts"], width)
        shapes[f"{name}.mlp.gate.expert_bias"] = (config["num_experts"],)
        for expert in range(config["num_experts"]):
            shapes |= _gated_shapes(f"{name}.mlp.experts.{expert}", width, hidden)
        joint = hidden * config["num_shared_experts"]
        shapes |= _gated_shapes(f"{name}.mlp.shared_experts", width, joint)
    return {**shapes, "model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}


def _gated_shapes(path: str, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{path}.gate_proj.weight": (hidden, width),
        f"{path}.up_proj.weight": (hidden, width),
        f"{path}.down_proj.weight": (width, hidden),
    }


def split_state(config: Mapping[str, Any], state: State) -> State:
    """Published tensors with queries, keys and values apart, as qdc has them."""
    head, shared = config["head_dim"], config["num_key_value_heads"]
    sizes = [config["num_attention_heads"] * head, shared * head, shared * head]
    found: State = {}
    for name, tensor in state.items():
        if FUSED in name:
            parts = torch.split(tensor, sizes)
            found |= {name.replace(FUSED, p): t for p, t in zip(PARTS, parts, strict=True)}
        else:
            found[name] = tensor
    return found


def fused_state(config: Mapping[str, Any], state: State) -> State:
    """The other way round."""
    found: State = {}
    for name, tensor in state.items():
        part = name.split(".")[-2]
        if part not in PARTS:
            found[name] = tensor
        elif part == PARTS[0]:
            rows = [state[name.replace(f".{PARTS[0]}.", f".{each}.")] for each in PARTS]
            found[name.replace(f".{PARTS[0]}.", f".{FUSED}.")] = torch.cat(rows)
    return found
