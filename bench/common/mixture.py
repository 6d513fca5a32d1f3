"""Random mixtures of experts in the layout of LLaDA-MoE, of any size, or just their headers."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from .processes import EMBEDDED

HEAD_WIDTH = 64
Shapes = dict[str, tuple[int, ...]]


class Mixture(NamedTuple):
    """Sizes of a mixture in which every block has experts."""

    regions: int
    width: int
    hidden: int
    """Of one expert."""
    experts: int
    chosen: int
    """Experts of a token."""
    vocabulary: int

    def configuration(self) -> dict[str, Any]:
        """``config.json``."""
        return {
            "architectures": ["LLaDAMoEModelLM"],
            "model_type": "llada",
            "hidden_size": self.width,
            "dense_intermediate_size": self.hidden,
            "num_hidden_layers": self.regions,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "head_dim": HEAD_WIDTH,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 4096,
            "rope_theta": 50000.0,
            "rms_norm_eps": 1e-5,
            "num_experts": self.experts,
            "num_experts_per_tok": self.chosen,
            "expert_intermediate_size": self.hidden,
            "qk_layernorm": True,
            "mask_token_id": 1,
            "eos_token_id": 0,
            "pad_token_id": 0,
        }

    @property
    def heads(self) -> int:
        """Attention heads, 64 wide."""
        return max(1, self.width // HEAD_WIDTH)

    def parts(self) -> list[Shapes]:
        """Tensors of every block, then those outside."""
        return [*map(self.block, range(self.regions)), self.outside()]

    def block(self, index: int) -> Shapes:
        """Tensors of a block."""
        path, width = f"model.layers.{index}", self.width
        attention = self.heads * HEAD_WIDTH
        found: Shapes = {}
        for leaf in ("q", "k", "v"):
            found[f"{path}.self_attn.{leaf}_proj.weight"] = (attention, width)
        found[f"{path}.self_attn.o_proj.weight"] = (width, attention)
        for leaf in ("q", "k"):
            found[f"{path}.self_attn.{leaf}_norm.weight"] = (HEAD_WIDTH,)
        for leaf in ("input_layernorm", "post_attention_layernorm"):
            found[f"{path}.{leaf}.weight"] = (width,)
        found[f"{path}.mlp.gate.weight"] = (self.experts, width)
        for expert in range(self.experts):
            own = f"{path}.mlp.experts.{expert}"
            found |= dict.fromkeys(
                (f"{own}.gate_proj.weight", f"{own}.up_proj.weight"), (self.hidden, width)
            )
            found[f"{own}.down_proj.weight"] = (width, self.hidden)
        return found

    def outside(self) -> Shapes:
        """Embedding, last norm, head."""
        matrix = (self.vocabulary, self.width)
        return {
            "model.embed_tokens.weight": matrix,
            "model.norm.weight": (self.width,),
            "lm_head.weight": matrix,
        }

    def write(self, folder: Path, *, weights: bool = True) -> Path:
        """Write a random checkpoint in bf16, or its configuration and index alone."""
        folder.mkdir(parents=True)
        text = json.dumps(self.configuration())
        (folder / "config.json").write_text(text, encoding="utf-8")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(EMBEDDED / name, folder / name)
        generator = torch.Generator().manual_seed(0)
        weight_map: dict[str, str] = {}
        total = 0
        for number, part in enumerate(self.parts()):
            file = f"model-{number + 1:05}-of-{self.regions + 1:05}.safetensors"
            weight_map |= dict.fromkeys(part, file)
            total += sum(2 * torch.Size(shape).numel() for shape in part.values())
            if weights:
                tensors = {name: _random(shape, generator) for name, shape in part.items()}
                save_file(tensors, folder / file, metadata={"format": "pt"})
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        return folder


def _random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Gains near 1, and matrices whose outputs are as large as their inputs."""
    noise = torch.randn(shape, generator=generator)
    scaled = 1 + 0.1 * noise if len(shape) == 1 else noise / shape[-1] ** 0.5
    return scaled.to(torch.bfloat16)
