"""What stands on the curve and around it, for a model with a mask token and for a causal one."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from qdc.ir.graph import LayerGraph
from qdc.passes.allocate_rates import AllocateRates
from qdc.passes.quantize_vocab import QuantizeVocab
from qdc.pipeline.builder import build_plan
from qdc.pipeline.passbase import Pass
from qdc.pipeline.plan import Group, Plan
from qdc.pipeline.registry import standard_registry

OURS, LIBRARY = "ours", "library"
RATES = (1.25, 1.75, 2.25, 2.5)
"""Budgets of ``best`` between those of the presets, all that is stored of the layers counted."""
CAUSAL_RATES = (1.25, 1.5, 1.75, 2.0, 2.2, 2.5, 3.0)
TYPES = (
    "IQ1_S", "TQ1_0", "IQ1_M", "IQ2_XXS", "TQ2_0", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K",
)  # fmt: skip
"""llama.cpp's, by their bits."""
SUPER = 256
"""Columns of a block of theirs."""


@dataclass(frozen=True)
class Case:
    """One thing to measure: a pipeline of ours, or a library with its options."""

    name: str
    pipeline: str = ""
    peer: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    missing: str = ""
    """Why it cannot be run on this model."""

    @property
    def family(self) -> str:
        """Whose it is."""
        return LIBRARY if self.peer else OURS

    @property
    def path(self) -> str:
        """What ``--only`` is matched with, a seed behind it."""
        return f"{self.family}/{self.name}"


def cases(graph: LayerGraph) -> Iterator[Case]:
    """All of them, ours first."""
    yield from ours(causal=graph.model.mask_token_id is None)
    yield from libraries(sorted({node.columns for node in graph.layers()}))


def ours(*, causal: bool) -> Iterator[Case]:
    """The points of our curve, by their bits; those of a causal model leave its vocabulary."""
    if causal:
        for rate in CAUSAL_RATES:
            yield Case(f"rates {rate:g}", best_at(rate, vocabulary=False))
        yield Case("default", "default")
        return
    for name in ("small", "best", "large", "default", "uniform"):
        yield Case(name, name)
    for rate in RATES:
        yield Case(f"rates {rate:g}", best_at(rate))


def best_at(rate: float, *, vocabulary: bool = True) -> str:
    """The pipeline of the preset ``best`` with another budget, embedding and head as it does."""
    plan = build_plan("best", standard_registry())
    items = [item for item in plan.items if vocabulary or not isinstance(item, QuantizeVocab)]
    return str(Plan(tuple(_at(item, rate) for item in items)))


def _at(item: Pass | Group, rate: float) -> Pass | Group:
    if not isinstance(item, AllocateRates):
        return item
    return AllocateRates(**{**item.model_dump(), "budget": rate, "count": "layers"})


def libraries(widths: list[int]) -> Iterator[Case]:
    """Every library at two and three bits, and llama.cpp's types; ``widths`` are of the linears."""
    for bits, group in ((2, 128), (2, 64), (3, 128)):
        yield Case(
            f"AutoRound {bits} bits g{group}",
            peer="autoround",
            options={"iters": 200, "bits": bits, "group_size": group, "sym": False},
        )
    for bits in (2, 3):
        for group in (128, 64):
            ragged = [width for width in widths if width % group]
            yield Case(
                f"GPTQ {bits} bits g{group}",
                peer="gptq",
                options={"bits": bits, "group_size": group, "observer": "memoryless_mse"},
                missing=f"llm-compressor takes whole groups, and rows of {ragged[0]} weights have "
                f"none of {group}"
                if ragged
                else "",
            )
            yield Case(
                f"HQQ {bits} bits g{group}",
                peer="hqq",
                options={"nbits": bits, "group_size": group},
            )
    for kind in TYPES:
        yield Case(f"llama.cpp {kind}", peer="llamacpp", options={"type": kind})
    if any(width % SUPER for width in widths):
        for kind in TYPES:
            options = {"type": kind, "padded": True}
            yield Case(f"llama.cpp {kind}, padded", peer="llamacpp", options=options)
