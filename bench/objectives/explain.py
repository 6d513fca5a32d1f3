"""Experiments that take the rise of the held-out loss apart; each changes one thing.

All run on the same held-out windows at mask ratio 0.5, so that differences are paired. Weights of a
version are ``W + E``; an experiment applies a part of ``E``, or noise in its place.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.common.files import write
from bench.objectives.gradient import Curvature, slopes
from bench.objectives.measure import Spectrum, stretched
from bench.objectives.model import Samples, Subject, Weights, kind
from bench.objectives.rise import Gap, Logits
from qdc.comparing.hooks import watching

WINDOWS, RATIO, STATES = 16, 0.5, 16
SHARES = (0.5,)
"""By how much ``E`` is scaled down to see whether the rise is linear or quadratic in it."""
TOP_INPUTS, TOP_OUTPUTS = (1, 16), 16
NOISE_OF = "feedback"
"""The version whose layer errors the noise matches."""

ONE_BY_ONE = ("rtn-64", "feedback", "feedback-polish", "autoround")
"""Versions whose layers are also put in one at a time."""

Experiment = tuple[str, Callable[[], AbstractContextManager[Logits]]]
"""A label, and what gives the logits of the changed model for a while."""
Results = dict[str, dict[str, tuple[float, float]]]


def explain(subject: Subject, versions: dict[str, Weights], file: Path) -> Results:
    """Run all experiments; what ``file`` holds is not run again.

    Returns:
        By version and experiment, the rise of the loss and its standard error.
    """
    found: Results = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    gap = Gap(subject, [subject.held_out(WINDOWS, RATIO, 0)])
    shapes = Shapes(subject, subject.calibration(1000, 128).spread(STATES))

    def run(version: str, experiments: Iterator[Experiment]) -> None:
        done = found.setdefault(version, {})
        for label, logits in experiments:
            if label not in done:
                with logits() as module:
                    done[label] = gap.of_module(module)
                write(json.dumps(found, indent=1) + "\n", file)

    for name, version in versions.items():
        errors = {layer: version[layer] - old for layer, old in subject.weights.items()}
        run(name, parts(subject, errors))
        run(name, _applied(subject, shapes.parts(errors, noise=name == NOISE_OF)))
        run(name, shapes.constants(errors))
    for name, version in versions.items():
        if name not in ONE_BY_ONE:
            continue
        errors = {layer: version[layer] - old for layer, old in subject.weights.items()}
        run(name, _applied(subject, ((f"layer {n}", {n: errors[n]}) for n in subject.layers)))
    return {name: found[name] for name in versions}


def parts(subject: Subject, errors: Weights) -> Iterator[Experiment]:
    """All of the errors, scaled down, at some positions, of one region or of one kind of layer."""
    whole: list[tuple[str, Weights]] = [("all", errors)]
    for share in SHARES:
        scaled = {layer: share * error for layer, error in errors.items()}
        whole.append((f"scaled {share:g}", scaled))
    for number, region in enumerate(subject.regions):
        inside = {n: e for n, e in errors.items() if n.startswith(f"{region}.")}
        whole.append((f"region {number}", inside))
    for own in dict.fromkeys(map(kind, subject.layers)):
        whole.append((f"kind {own}", {n: e for n, e in errors.items() if kind(n) == own}))
    yield from _applied(subject, iter(whole))
    for where in ("masked", "visible"):
        yield f"errors at {where}", partial(_somewhere, subject, errors, where)


class Shapes:
    """Directions of inputs by energy and of outputs by Fisher information, for each layer."""

    def __init__(self, subject: Subject, states: Samples) -> None:
        self.subject = subject
        self.spectrum = Spectrum(subject, states)
        self.means = _means(subject, states)
        outputs = Curvature(subject, slopes(subject, states)).outputs
        self.outputs = {
            layer: torch.linalg.eigh(outputs[layer]).eigenvectors.flip(1)
            for layer in subject.layers
        }

    def parts(self, errors: Weights, *, noise: bool) -> Iterator[tuple[str, Weights]]:
        """Parts of the errors by direction; with ``noise`` also noise of the same layer error."""
        for top in TOP_INPUTS:
            inside = self._split(errors, top, inputs=True)
            yield f"inputs within top {top}", inside
            yield f"inputs without top {top}", _minus(errors, inside)
        inside = self._split(errors, TOP_OUTPUTS, inputs=False)
        yield f"outputs within top {TOP_OUTPUTS}", inside
        yield f"outputs without top {TOP_OUTPUTS}", _minus(errors, inside)
        version = {layer: self.subject.weights[layer] + error for layer, error in errors.items()}
        longer = stretched(self.subject, version, self.spectrum.moments["all"])
        yield "rows stretched", _minus(longer, self.subject.weights)
        if not noise:
            return
        generator = torch.Generator().manual_seed(0)
        white = {
            layer: torch.randn(error.shape, generator=generator) for layer, error in errors.items()
        }
        yield "noise: white weights", self._matched(white, errors)
        even = {
            layer: value / self._root(layer) @ self.spectrum.vectors[self._stage(layer)].T
            for layer, value in white.items()
        }
        yield "noise: even over input directions", self._matched(even, errors)
        for top in TOP_INPUTS:
            inside = self._split(white, top, inputs=True)
            yield f"noise: inputs within top {top}", self._matched(inside, errors)
            yield f"noise: inputs without top {top}", self._matched(_minus(white, inside), errors)
        inside = self._split(white, TOP_OUTPUTS, inputs=False)
        yield f"noise: outputs within top {TOP_OUTPUTS}", self._matched(inside, errors)
        yield (
            f"noise: outputs without top {TOP_OUTPUTS}",
            self._matched(_minus(white, inside), errors),
        )

    def constants(self, errors: Weights) -> Iterator[Experiment]:
        """The mean output error of each layer, a constant: alone, and taken out by a bias."""
        shift = {layer: error @ self.means[self._stage(layer)] for layer, error in errors.items()}
        back = {layer: -value for layer, value in shift.items()}
        yield "constant part alone", partial(_shifted, self.subject, {}, shift)
        yield "without the constant part", partial(_shifted, self.subject, errors, back)

    def energy(self, layer: str, error: Tensor) -> float:
        """Sum of the squared outputs of an error over the states."""
        moment = self.spectrum.moments["all"][self._stage(layer)]
        return float(((error @ moment) * error).sum())

    def _stage(self, layer: str) -> str:
        return self.subject.source[layer]

    def _root(self, layer: str) -> Tensor:
        """Root of the energy of each input direction; tiny ones count as a millionth of all."""
        values = self.spectrum.values[self._stage(layer)]
        return values.clamp(min=float(values.sum()) * 1e-6).sqrt()

    def _split(self, errors: Weights, top: int, *, inputs: bool) -> Weights:
        """The part of each error inside the leading directions."""
        found = {}
        for layer, error in errors.items():
            if inputs:
                lead = self.spectrum.vectors[self._stage(layer)][:, :top]
                found[layer] = error @ lead @ lead.T
            else:
                lead = self.outputs[layer][:, :top]
                found[layer] = lead @ (lead.T @ error)
        return found

    def _matched(self, noise: Weights, errors: Weights) -> Weights:
        """Noise scaled to the energy of each layer's error."""
        return {
            layer: value * (self.energy(layer, errors[layer]) / self.energy(layer, value)) ** 0.5
            for layer, value in noise.items()
        }


def _applied(subject: Subject, given: Iterator[tuple[str, Weights]]) -> Iterator[Experiment]:
    """Experiments that add errors to some layers and leave the others as they were."""
    for label, errors in given:
        weights = {layer: subject.weights[layer] + error for layer, error in errors.items()}
        yield label, partial(subject.using, weights)


@contextmanager
def _shifted(subject: Subject, errors: Weights, shift: Weights) -> Iterator[Logits]:
    """The original model with some errors, and with constants ``f32[rows]`` added to outputs."""
    changed = {layer: subject.weights[layer] + error for layer, error in errors.items()}
    added = {layer: partial(_add, value) for layer, value in shift.items()}
    with watching(subject.module, added), subject.using(changed) as module:
        yield module


def _add(shift: Tensor, read: Tensor, output: Tensor) -> Tensor:
    return output + shift


@contextmanager
def _somewhere(subject: Subject, errors: Weights, where: str) -> Iterator[Logits]:
    """The original model whose linears err at masked or at visible positions only."""
    places = torch.empty(0)

    def err(own: Tensor, read: Tensor, output: Tensor) -> Tensor:
        return output + places * F.linear(read, own)

    def logits(tokens: Tensor) -> Tensor:
        nonlocal places
        masked = tokens == subject.facts.mask
        places = (masked if where == "masked" else ~masked).unsqueeze(-1).float()
        found: Tensor = subject.module(tokens)
        return found

    with watching(subject.module, {layer: partial(err, own) for layer, own in errors.items()}):
        yield logits


@torch.no_grad()
def _means(subject: Subject, samples: Samples) -> dict[str, Tensor]:
    """Mean input of each stage, ``f32[columns]``."""
    found: dict[str, Tensor] = {}
    for batch in samples.batches():
        for stage, value in subject.trace(batch.tokens).inputs.items():
            found[stage] = found.get(stage, 0) + value.sum(0) / samples.tokens.numel()
    return found


def _minus(whole: Weights, part: Weights) -> Weights:
    return {layer: value - part[layer] for layer, value in whole.items()}
