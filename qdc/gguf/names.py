"""Which tensor of a GGUF file a parameter of the model is, for the families that llama.cpp knows.

Source: engines-2026.md, GGUF. What llama.cpp's graph for an architecture leaves out is refused,
with the reason: a file that loads and computes something else would be worse than none.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from qdc.errors import UnsupportedModel
from qdc.models.families import FAMILIES, Families
from qdc.models.family import Family
from qdc.models.names import Names
from qdc.models.sizes import Sizes

ARCHITECTURES: Final = {"llada": "llada", "dream": "dream", "llada-moe": "llada-moe"}
"""Families of qdc, and what llama.cpp calls them."""
ROTATED_IN_PAIRS: Final = frozenset({"llada"})
"""Architectures in which llama.cpp rotates neighbouring columns of a head, not its two halves."""
MIXED: Final = ("attn_v", "attn_output", "ffn_down", "ffn_down_exps")
"""Tensors that llama.cpp's Q2_K files hold in Q3_K."""


class Place(NamedTuple):
    """Where the parameters of one module go.

    Attributes:
        name: of the tensor, without ``.weight`` or ``.bias``.
        heads: whose rows are reordered, half by half; 0 for a tensor that stays as it is.
        expert: its number, for a tensor that holds all experts of a block.
    """

    name: str
    heads: int = 0
    expert: int | None = None

    @property
    def role(self) -> str:
        """``attn_v``, the name without its block."""
        return self.name.split(".")[-1]

    def reordered(self, rows: Tensor) -> Tensor:
        """The rows of a weight, a bias or blocks in the order in which llama.cpp rotates them."""
        if not self.heads:
            return rows
        halves = torch.unflatten(rows, 0, (self.heads, 2, -1))
        found: Tensor = halves.transpose(1, 2).flatten(0, 2).contiguous()
        return found


@dataclass(frozen=True)
class Naming:
    """A model as llama.cpp sees it."""

    architecture: str
    family: Family
    sizes: Sizes
    places: Mapping[str, Place]
    """Of each module with parameters, by its path; experts of a tensor in order."""


def naming(config: Mapping[str, Any], families: Families) -> Naming:
    """Find the architecture and the names for a configuration.

    Raises:
        UnsupportedModel: llama.cpp has no architecture that computes this model.
    """
    family = families.find(config)
    if family is None or family.name not in ARCHITECTURES:
        what = "this model" if family is None else f"models of the family {family.name}"
        raise UnsupportedModel(
            f"llama.cpp has no graph for {what} that looks both ways, so no GGUF file can be "
            "written",
            where=[str(name) for name in config.get("architectures") or ()],
            help=f"families with one: {', '.join(ARCHITECTURES)}; qdc export writes a dense "
            "checkpoint of the others",
        )
    sizes = family.read(config)
    architecture = ARCHITECTURES[family.name]
    problems = list(_problems(architecture, sizes))
    if problems:
        raise UnsupportedModel(
            f"llama.cpp's graph for {architecture} does not compute this model",
            where=problems,
            help="run it with qdc, or export it dense",
        )
    return Naming(architecture, family, sizes, dict(_places(architecture, family.names, sizes)))


def _problems(architecture: str, sizes: Sizes) -> Iterator[str]:
    sparse = [sizes.is_sparse(index) for index in range(sizes.blocks)]
    if architecture == "llada-moe":
        if not all(sparse):
            yield "some blocks have no experts, and it expects them in all"
        if sizes.normalized:
            yield "the weights of a token's experts add up to 1, and it leaves them as they are"
        if not sizes.head_norms:
            yield "queries and keys are not normed, and it norms them"
    elif any(sparse):
        yield "some blocks have experts, and it knows none"
    elif sizes.head_norms:
        yield "queries and keys are normed, and it does not norm them"


def _places(architecture: str, names: Names, sizes: Sizes) -> Iterator[tuple[str, Place]]:
    pairs = architecture in ROTATED_IN_PAIRS
    yield names.embedding, Place("token_embd")
    for index in range(sizes.blocks):
        block, target = f"{names.blocks}.{index}", f"blk.{index}"
        keys = sizes.key_heads or sizes.heads
        inside = {
            names.attention_norm: Place("attn_norm"),
            names.query: Place("attn_q", sizes.heads if pairs else 0),
            names.key: Place("attn_k", keys if pairs else 0),
            names.value: Place("attn_v"),
            names.output: Place("attn_output"),
            names.feed_forward_norm: Place("ffn_norm"),
        }
        if sizes.head_norms:
            inside |= {
                names.query_norm: Place("attn_q_norm"),
                names.key_norm: Place("attn_k_norm"),
            }
        if sizes.is_sparse(index):
            inside[names.router] = Place("ffn_gate_inp")
            for expert in range(sizes.experts or 0):
                parts = {
                    "gate": names.expert_gate,
                    "up": names.expert_up,
                    "down": names.expert_down,
                }
                for part, name in parts.items():
                    path = f"{names.experts}.{expert}.{name}"
                    inside[path] = Place(f"ffn_{part}_exps", expert=expert)
        else:
            inside |= {
                names.gate: Place("ffn_gate"),
                names.up: Place("ffn_up"),
                names.down: Place("ffn_down"),
            }
        for name, place in inside.items():
            yield f"{block}.{name}", place._replace(name=f"{target}.{place.name}")
    yield names.final_norm, Place("output_norm")
    if not sizes.tied:
        yield names.head, Place("output")


def naming_role(family: str, path: str) -> str:
    """The part that a layer plays, ``attn_v``, by the key names of its family; empty if unknown."""
    found = next((each for each in FAMILIES if each.name == family), None)
    if found is None:
        return ""
    names = found.names
    roles = {
        names.value: "attn_v",
        names.output: "attn_output",
        names.down: "ffn_down",
        names.expert_down: "ffn_down_exps",
    }
    inside = path.removeprefix(f"{names.blocks}.")
    return next((role for name, role in roles.items() if inside.endswith(f".{name}")), "")
