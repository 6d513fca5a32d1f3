"""Objectives that weigh an error by what it does to the loss of the original model.

``g`` is the gradient of the masked cross-entropy, summed over the masked tokens of a sample, at one
position of a layer's output or of the residual stream. With labels drawn from the model itself its
second moment is the Fisher matrix, the curvature of the Kullback-Leibler divergence; with the true
labels its mean is the slope of the loss.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.objectives.measure import Measures
from bench.objectives.model import Samples, Subject, Weights
from qdc.comparing.hooks import watching


@dataclass
class Slopes:
    """Gradients of the original model on some samples."""

    samples: Samples
    slope: Weights = field(default_factory=dict)
    """Gradient of the mean loss with true labels by layer, ``f32[rows, columns]``."""
    inputs: list[dict[str, Tensor]] = field(default_factory=list)
    """Each batch's stage inputs, ``f32[P, columns]``."""
    outputs: list[dict[str, Tensor]] = field(default_factory=list)
    """Each batch's gradients at the outputs of layers and regions, ``f32[P, rows]``; drawn labels.
    """
    regions: list[dict[str, Tensor]] = field(default_factory=list)
    """Each batch's residual stream behind each region, ``f32[P, width]``."""
    tokens: int = 0
    """Masked tokens over which the gradients are taken."""


def slopes(subject: Subject, samples: Samples, seed: int = 0) -> Slopes:
    """Run the original forward and backward, once with true and once with drawn labels."""
    found = Slopes(samples)
    generator = torch.Generator().manual_seed(seed)
    for batch in samples.batches():
        caught: dict[str, Tensor] = {}
        catching = {
            name: partial(_catch, caught, name) for name in [*subject.layers, *subject.regions]
        }
        with torch.enable_grad(), watching(subject.module, catching):
            trace = subject.trace(batch.tokens)
            logits = trace.logits[batch.masked.flatten()]
            clean = batch.clean[batch.masked]
            drawn = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)[:, 0]
            losses = [F.cross_entropy(logits, label, reduction="sum") for label in (clean, drawn)]
            names = list(caught)
            true = torch.autograd.grad(losses[0], list(caught.values()), retain_graph=True)
            sampled = torch.autograd.grad(losses[1], list(caught.values()))
        inputs = {name: value.detach() for name, value in trace.inputs.items()}
        gradient = dict(zip(names, (g.flatten(0, 1) for g in true), strict=True))
        for layer in subject.layers:
            step = gradient[layer].T @ inputs[subject.source[layer]]
            found.slope[layer] = found.slope.get(layer, 0) + step
        found.inputs.append(inputs)
        found.outputs.append(dict(zip(names, (g.flatten(0, 1) for g in sampled), strict=True)))
        found.regions.append({name: value.detach() for name, value in trace.regions.items()})
        found.tokens += len(clean)
    found.slope = {name: value / found.tokens for name, value in found.slope.items()}
    return found


def _catch(into: dict[str, Tensor], name: str, read: Tensor, output: Tensor) -> Tensor:
    # The first layer's output needs a gradient though no weight asks for one.
    into[name] = output if output.requires_grad else output.requires_grad_()
    return into[name]


class Curvature:
    """Second moments of gradients and of inputs weighted by gradients, from ``Slopes``."""

    def __init__(self, subject: Subject, given: Slopes) -> None:
        self.subject, self.given = subject, given
        self.outputs: Weights = {}
        """``sum g g^T`` by layer and by region."""
        self.inputs: Weights = {}
        """``sum |g|^2 x x^T`` by layer."""
        self.plain: Weights = {}
        """``sum x x^T`` by stage."""
        for inputs, gradients in zip(given.inputs, given.outputs, strict=True):
            for name, g in gradients.items():
                self.outputs[name] = self.outputs.get(name, 0) + g.T @ g
            for stage, x in inputs.items():
                self.plain[stage] = self.plain.get(stage, 0) + x.T @ x
            for layer in subject.layers:
                x = inputs[subject.source[layer]]
                weighted = x * gradients[layer].square().sum(1, keepdim=True)
                self.inputs[layer] = self.inputs.get(layer, 0) + weighted.T @ x
        self.positions = sum(len(x) for x in (g[subject.layers[0]] for g in given.outputs))

    def measure(self, version: Weights) -> Measures:
        """Gradient-weighted errors of one version, in nats a masked token where a unit exists."""
        errors = {name: version[name] - old for name, old in self.subject.weights.items()}
        found = {
            "layer first order": sum(
                float((self.given.slope[name] * error).sum()) for name, error in errors.items()
            )
        }
        found |= self._by_moments(errors)
        found |= self._by_positions(errors)
        found |= self._by_regions(version)
        return found

    def _by_moments(self, errors: Weights) -> Measures:
        """What matrices alone tell, one layer at a time, summed over layers."""
        energy = weighted = factored = diagonal = 0.0
        for name, error in errors.items():
            seen = error @ self.plain[self.subject.source[name]]
            output = self.outputs[name] / self.positions
            energy += float((seen * error).sum())
            weighted += float(((error @ self.inputs[name]) * error).sum())
            factored += float((output * (seen @ error.T)).sum())
            diagonal += float(output.diagonal() @ (seen * error).sum(1))
        half = 0.5 / self.given.tokens
        return {
            "absolute layer error": energy / self.positions,
            "layer input-weighted": weighted * half,
            "layer diagonal fisher": diagonal * half,
            "layer factored fisher": factored * half,
        }

    @torch.no_grad()
    def _by_positions(self, errors: Weights) -> Measures:
        """What needs the output error of every position, and all layers together."""
        rowwise = pointwise = joint = 0.0
        given = self.given
        batches = zip(given.samples.batches(), given.inputs, given.outputs, strict=True)
        for batch, inputs, gradients in batches:
            for name, error in errors.items():
                product = gradients[name] * (inputs[self.subject.source[name]] @ error.T)
                rowwise += float(product.square().sum())
                pointwise += float(product.sum(1).square().sum())
            logits, shift = logit_shift(self.subject, batch.tokens, errors)
            rows = batch.masked.flatten()
            joint += spread(logits.flatten(0, 1)[rows], shift.flatten(0, 1)[rows])
        half = 0.5 / given.tokens
        return {
            "layer row-and-position fisher": rowwise * half,
            "layer position fisher": pointwise * half,
            "all layers linearised to logits": joint * half,
        }

    @torch.no_grad()
    def _by_regions(self, version: Weights) -> Measures:
        """Errors that have gathered in the residual stream."""
        found: Measures = dict.fromkeys(
            (
                f"{where}region {what} fisher"
                for where in ("", "last ")
                for what in ("position", "full", "diagonal")
            ),
            0.0,
        )
        tail, given, subject = 0.0, self.given, self.subject
        half = 0.5 / given.tokens
        batches = zip(given.samples.batches(), given.outputs, given.regions, strict=True)
        for batch, gradients, regions in batches:
            with subject.using(version):
                trace = subject.trace(batch.tokens)
            for region in subject.regions:
                error = trace.regions[region] - regions[region]
                output = self.outputs[region] / self.positions
                values = {
                    "position": (error * gradients[region]).sum(1).square().sum(),
                    "full": ((error @ output) * error).sum(),
                    "diagonal": error.square().sum(0) @ output.diagonal(),
                }
                for what, value in values.items():
                    found[f"region {what} fisher"] += float(value) * half / len(subject.regions)
                    if region == subject.regions[-1]:
                        found[f"last region {what} fisher"] += float(value) * half
            rows = batch.masked.flatten()
            last = subject.regions[-1]
            moved = jvp(
                lambda hidden: subject.head(subject.last_norm(hidden)),
                (regions[last][rows],),
                (trace.regions[last][rows] - regions[last][rows],),
            )
            tail += spread(moved[0], moved[1])
        return {**found, "last region linearised to logits": tail * half}


def logit_shift(subject: Subject, tokens: Tensor, errors: Weights) -> tuple[Tensor, Tensor]:
    """Logits of the original, ``f32[b, length, vocabulary]``, and their first-order change."""
    names = {f"{name}.weight": name for name in errors}

    def run(weights: dict[str, Tensor]) -> Tensor:
        found: Tensor = functional_call(subject.module, weights, (tokens,))
        return found

    # Only this kernel of attention knows forward derivatives.
    with sdpa_kernel(SDPBackend.MATH):
        original = {key: subject.weights[name] for key, name in names.items()}
        change = {key: errors[name] for key, name in names.items()}
        moved = jvp(run, (original,), (change,))
    return moved[0], moved[1]


def spread(logits: Tensor, shift: Tensor) -> float:
    """Sum of the variance of ``shift`` under the predictions: twice the divergence it causes."""
    probability = logits.softmax(1)
    mean = (probability * shift).sum(1, keepdim=True)
    return float((probability * (shift - mean).square()).sum())
