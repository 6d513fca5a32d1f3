"""The original model, its quantized versions, and what goes on inside them, as plain tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import qdc
from bench.common.samples import calibration_states, held_out
from qdc.comparing.hooks import Look, watching
from qdc.evaluation.masked_loss import ratio_mask
from qdc.frontend.opening import open_model
from qdc.models.layers import RMSNorm

BATCH = 16
Weights = dict[str, Tensor]
"""``layer path -> f32[rows, columns]`` of the linears that are quantized."""


@dataclass(frozen=True)
class Samples:
    """Windows as the model sees them."""

    clean: Tensor
    """``i64[N, length]``: the text."""
    tokens: Tensor
    """``i64[N, length]``: the text with masks."""
    masked: Tensor
    """``bool[N, length]``."""

    def batches(self) -> Iterator["Samples"]:
        """Parts of at most ``BATCH`` windows."""
        for start in range(0, len(self.tokens), BATCH):
            part = slice(start, start + BATCH)
            yield Samples(self.clean[part], self.tokens[part], self.masked[part])

    def spread(self, most: int) -> "Samples":
        """At most ``most`` windows, evenly chosen."""
        count = min(most, len(self.tokens))
        rows = torch.arange(count) * len(self.tokens) // count
        return Samples(self.clean[rows], self.tokens[rows], self.masked[rows])


@dataclass
class Trace:
    """What one forward leaves behind; positions are flattened."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    """``f32[P, columns]`` by the path of a stage's first layer."""
    regions: dict[str, Tensor] = field(default_factory=dict)
    """``f32[P, width]``: the residual stream behind each region."""
    final: Tensor = field(default_factory=lambda: torch.empty(0))
    """``f32[P, width]``: what the output head reads."""
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    """``f32[P, vocabulary]``."""


class Subject:
    """The model under study: module, layers by path, the stage that each layer reads from."""

    def __init__(self, folder: Path) -> None:
        graph = open_model(folder)[1].graph
        self.folder, self.facts = folder, graph.model
        self.module = qdc.load_original(folder)
        self.layers = [node.path for node in graph.layers()]
        self.regions = [graph.structure.prefix + region.name for region in graph.regions]
        self.end, self.last_norm = _last(self.module, RMSNorm)
        self.head = _last(self.module, nn.Linear)[1]
        self.source: dict[str, str] = {}
        """``layer -> first layer of its stage``."""
        for region in graph.regions:
            for stage in region.stages:
                first = graph[stage.layers[0]].path
                self.source |= {graph[name].path: first for name in stage.layers}
        self.stages = list(dict.fromkeys(self.source.values()))
        self.weights = linear_weights(self.module, self.layers)
        self.norms = {
            layer: norm
            for layer in self.layers
            if (norm := _norm_before(self.module, layer, self.facts.family)) is not None
        }

    def calibration(self, seed: int, samples: int, geometry: str = "mcs") -> Samples:
        """Draw states from the calibration text as a compile with these options does."""
        found = calibration_states(self.folder, seed, samples=samples, geometry=geometry)
        return Samples(found.clean, found.tokens, found.masked)

    def held_out(self, windows: int, ratio: float, seed: int) -> Samples:
        """Held-out windows masked at one ratio, as ``qdc eval`` does."""
        clean = held_out(self.folder, windows)
        masked = ratio_mask(len(clean), clean.shape[1], ratio, seed)
        return Samples(clean, clean.masked_fill(masked, self.facts.mask), masked)

    def version(self, module: nn.Module) -> Weights:
        """Weights of a quantized version; norm gains that it changed are folded into them."""
        found = linear_weights(module, self.layers)
        for layer, norm in self.norms.items():
            gains = module.get_submodule(norm).weight, self.module.get_submodule(norm).weight
            assert isinstance(gains[0], Tensor)
            assert isinstance(gains[1], Tensor)
            found[layer] = found[layer] * (gains[0] / gains[1])
        return found

    @contextmanager
    def using(self, weights: Weights) -> Iterator[nn.Module]:
        """Put weights into the module for a while."""
        places = {name: self.module.get_submodule(name) for name in weights}
        try:
            for name, linear in places.items():
                linear.weight = nn.Parameter(weights[name], requires_grad=False)
            yield self.module
        finally:
            for name, linear in places.items():
                linear.weight = nn.Parameter(self.weights[name], requires_grad=False)

    def trace(self, tokens: Tensor) -> Trace:
        """Run the module as it is on ``i64[b, length]`` and keep what happens inside."""
        found = Trace()

        def read(name: str, inputs: Tensor, output: Tensor) -> None:
            found.inputs[name] = inputs.flatten(0, 1)

        def region(name: str, inputs: Tensor, output: Tensor) -> None:
            found.regions[name] = output.flatten(0, 1)

        def end(inputs: Tensor, output: Tensor) -> None:
            found.final = output.flatten(0, 1)

        looks: dict[str, Look] = {name: partial(read, name) for name in self.stages}
        looks |= {name: partial(region, name) for name in self.regions}
        with watching(self.module, {**looks, self.end: end}):
            found.logits = self.module(tokens).flatten(0, 1)
        return found


def linear_weights(module: nn.Module, layers: list[str]) -> Weights:
    """Copies of the weights of some linears, ``f32[rows, columns]`` each."""
    state = module.state_dict()
    return {name: state[f"{name}.weight"].detach().float().clone() for name in layers}


def kind(layer: str) -> str:
    """``q_proj`` of ``model.transformer.blocks.3.q_proj``."""
    return layer.rsplit(".", 1)[-1]


def _last(module: nn.Module, wanted: type[nn.Module]) -> tuple[str, nn.Module]:
    """Path and module of a class that come last, so that they are outside the regions."""
    found = [(path, part) for path, part in module.named_modules() if isinstance(part, wanted)]
    return found[-1]


def _norm_before(module: nn.Module, layer: str, family: str) -> str | None:
    """Path of the norm whose output a layer reads; None for layers that read something else."""
    if family != "llada":
        raise ValueError(f"this study knows the layout of llada, not of {family}")
    block, _, own = layer.rpartition(".")
    before = {"attn_norm": ("q_proj", "k_proj", "v_proj"), "ff_norm": ("ff_proj", "up_proj")}
    norm = next((name for name, readers in before.items() if own in readers), None)
    return None if norm is None else f"{block}.{norm}"
