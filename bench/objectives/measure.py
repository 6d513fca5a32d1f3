"""Objectives that need no gradient: layer, region and output errors of one quantized version."""

import math
from collections import defaultdict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.objectives.model import Samples, Subject, Trace, Weights, kind

Measures = dict[str, float]
TOP = (1, 4, 16)
"""How many leading directions of a second moment are told from the rest."""


@dataclass(frozen=True)
class Reference:
    """The original model on some samples."""

    samples: Samples
    traces: list[Trace]
    """One for each batch, without the inputs of layers."""


class Spectrum:
    """Second moments of the original model's states, by stage, in their own directions."""

    def __init__(self, subject: Subject, samples: Samples) -> None:
        self.moments = {
            part: stage_moments(subject, samples, part) for part in ("all", "masked", "visible")
        }
        self.values: dict[str, Tensor] = {}
        self.vectors: dict[str, Tensor] = {}
        for stage, moment in self.moments["all"].items():
            values, vectors = torch.linalg.eigh(moment)
            self.values[stage] = values.flip(0).clamp(min=0)
            self.vectors[stage] = vectors.flip(1)

    def shares(self) -> dict[str, dict[str, float]]:
        """Share of a moment's trace in its leading directions, mean by kind of layer."""
        found: dict[str, list[list[float]]] = defaultdict(list)
        for stage, values in self.values.items():
            total = values.sum()
            masked = self.moments["masked"][stage]
            first = float(torch.linalg.eigvalsh(masked)[-1] / masked.trace())
            found[kind(stage)].append([*(float(values[:k].sum() / total) for k in TOP), first])
        names = [*(f"top {k}" for k in TOP), "top 1 of masked"]
        return {
            name: dict(zip(names, torch.tensor(rows).mean(0).tolist(), strict=True))
            for name, rows in found.items()
        }


@torch.no_grad()
def stage_moments(subject: Subject, samples: Samples, part: str = "all") -> dict[str, Tensor]:
    """Sum of ``x x^T`` over positions, ``f32[columns, columns]`` by stage, of the current weights.

    ``part`` is ``all``, ``masked`` or ``visible``.
    """
    found: dict[str, Tensor] = {}
    for batch in samples.batches():
        chosen = select(batch, part)
        for stage, value in subject.trace(batch.tokens).inputs.items():
            rows = value[chosen]
            found[stage] = found.get(stage, 0) + rows.T @ rows
    return found


@torch.no_grad()
def reference(subject: Subject, samples: Samples) -> Reference:
    """Run the original once."""
    traces = [subject.trace(batch.tokens) for batch in samples.batches()]
    for trace in traces:
        trace.inputs = {}
    return Reference(samples, traces)


@torch.no_grad()
def measure(subject: Subject, version: Weights, original: Reference) -> Measures:
    """Errors of one version on one set of states.

    Layer errors are those of the compiler: relative, one layer at a time, on inputs that come
    through the quantized layers before. Region errors are what has gathered in the residual stream.
    States without a masked position leave out what is about these.
    """
    moments: dict[str, dict[str, Tensor]] = {"masked": {}, "visible": {}}
    sums: dict[str, float] = defaultdict(float)
    with subject.using(version):
        for batch, true in zip(original.samples.batches(), original.traces, strict=True):
            found = subject.trace(batch.tokens)
            for part, by_stage in moments.items():
                rows = select(batch, part)
                for stage, value in found.inputs.items():
                    by_stage[stage] = by_stage.get(stage, 0) + value[rows].T @ value[rows]
                for region, value in {**found.regions, "final": found.final}.items():
                    target = (true.final if region == "final" else true.regions[region])[rows]
                    sums[f"{region} {part} error"] += float((value[rows] - target).square().sum())
                    sums[f"{region} {part} size"] += float(target.square().sum())
            _add_logits(sums, found.logits, true.logits, batch)
    moments["all"] = {
        stage: moments["masked"].get(stage, 0) + moments["visible"][stage]
        for stage in moments["visible"]
    }
    result: Measures = {}
    for part, by_stage in moments.items():
        errors = [relative(subject, version, layer, by_stage) for layer in subject.layers]
        result[f"layer {part}"] = sum(errors) / len(errors)
    for part in ("masked", "visible", "all"):
        parts = ("masked", "visible") if part == "all" else (part,)
        shares = []
        for region in [*subject.regions, "final"]:
            error, size = (
                sum(sums[f"{region} {p} {what}"] for p in parts) for what in ("error", "size")
            )
            shares.append(error / size if size else math.nan)
        result[f"last region {part}"] = shares[-2]
        result[f"mean region {part}"] = sum(shares[:-1]) / len(shares[:-1])
        result[f"final {part}"] = shares[-1]
        result |= {f"region {i} {part}": share for i, share in enumerate(shares[:-1])}
    if sums["tokens"]:
        result["kl"] = sums["kl"] / sums["tokens"]
        result["rise"] = sums["rise"] / sums["tokens"]
    return {what: value for what, value in result.items() if not math.isnan(value)}


def spectral(subject: Subject, version: Weights, spectrum: Spectrum) -> Measures:
    """Layer error on the original's states, all of it, without and within leading directions."""
    names = ["all", *(f"within top {k}" for k in TOP), *(f"without top {k}" for k in TOP)]
    rows, share = [], []
    for layer in subject.layers:
        stage = subject.source[layer]
        values, vectors = spectrum.values[stage], spectrum.vectors[stage]
        weight = subject.weights[layer]
        error = ((version[layer] - weight) @ vectors).square().sum(0) * values
        size = (weight @ vectors).square().sum(0) * values
        within = [float(error[:k].sum() / size[:k].sum()) for k in TOP]
        without = [float(error[k:].sum() / size[k:].sum()) for k in TOP]
        rows.append([float(error.sum() / size.sum()), *within, *without])
        share.append([float(error[:k].sum() / error.sum()) for k in TOP])
    found = dict(zip((f"spectral {n}" for n in names), _mean(rows), strict=True))
    return found | dict(zip((f"share of error in top {k}" for k in TOP), _mean(share), strict=True))


def relative(subject: Subject, version: Weights, layer: str, moments: dict[str, Tensor]) -> float:
    """Return ``|E x|^2 / |W x|^2`` of one layer under a stage's moment."""
    moment, weight = moments[subject.source[layer]], subject.weights[layer]
    error = version[layer] - weight
    size = ((weight @ moment) * weight).sum()
    return float(((error @ moment) * error).sum() / size) if size else math.nan


def stretched(subject: Subject, version: Weights, moments: dict[str, Tensor]) -> Weights:
    """Scale each row until no part of its output error lies along the true output.

    A least-squares fit leaves rows too short: ``E y'y < E y y`` for the fitted output ``y'``.
    """
    found = {}
    for layer, weight in subject.weights.items():
        seen = weight @ moments[subject.source[layer]]
        gain = (seen * version[layer]).sum(1) / (seen * weight).sum(1)
        found[layer] = version[layer] / gain[:, None]
    return found


def select(batch: Samples, part: str) -> Tensor:
    """Positions of a flattened batch, ``bool[P]``."""
    masked = batch.masked.flatten()
    return {"all": torch.ones_like(masked), "masked": masked, "visible": ~masked}[part]


def _add_logits(sums: dict[str, float], found: Tensor, true: Tensor, batch: Samples) -> None:
    rows = batch.masked.flatten()
    clean = batch.clean.flatten()[rows]
    ours, theirs = (F.log_softmax(logits[rows], 1) for logits in (found, true))
    sums["kl"] += float(F.kl_div(ours, theirs, reduction="sum", log_target=True))
    sums["rise"] += float(
        F.nll_loss(ours, clean, reduction="sum") - F.nll_loss(theirs, clean, reduction="sum")
    )
    sums["tokens"] += len(clean)


def _mean(rows: list[list[float]]) -> list[float]:
    found: list[float] = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
    return found
