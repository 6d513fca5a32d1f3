"""The study of objectives: its figures on a tiny random model, its statistics on known series."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import qdc
from bench.common.statistics import spearman
from bench.objectives.__main__ import Bench
from bench.objectives.explain import explain
from bench.objectives.gradient import Curvature, logit_shift, slopes, spread
from bench.objectives.measure import (
    Spectrum,
    measure,
    reference,
    spectral,
    stage_moments,
    stretched,
)
from bench.objectives.model import Samples, Subject, Weights
from bench.objectives.plots import draw
from bench.objectives.population import Variant, compiled, population
from bench.objectives.rise import Gap
from bench.objectives.statistics import predict
from bench.objectives.tables import FAMILIES, OBJECTIVES, tables
from qdc.pipeline.builder import build_plan
from qdc.pipeline.plan import check_order
from qdc.pipeline.registry import standard_registry
from tests.support.checkpoints import EMBEDDED, MASK, write_checkpoint


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("model")
    return Subject(write_checkpoint(folder, d_model=64, mlp_hidden_size=96, vocab=512))


@pytest.fixture(scope="module")
def samples() -> Samples:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(2, 512, (6, 24), generator=generator)
    masked = torch.rand(clean.shape, generator=generator) < 0.5
    return Samples(clean, clean.masked_fill(masked, MASK), masked)


def noisy(subject: Subject, size: float, seed: int = 0) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {
        layer: weight + size * weight.std() * torch.randn(weight.shape, generator=generator)
        for layer, weight in subject.weights.items()
    }


def test_an_unchanged_model_has_no_error_and_no_rise(subject: Subject, samples: Samples) -> None:
    found = measure(subject, subject.weights, reference(subject, samples))
    assert all(abs(value) < 1e-6 for value in found.values())
    curvature = Curvature(subject, slopes(subject, samples))
    assert all(value == 0 for value in curvature.measure(subject.weights).values())
    assert Gap(subject, [samples]).of(subject.weights) == (0, 0)


def test_weights_are_put_back_after_use(subject: Subject, samples: Samples) -> None:
    before = subject.module(samples.tokens)
    measure(subject, noisy(subject, 0.3), reference(subject, samples))
    assert torch.equal(subject.module(samples.tokens), before)


def test_layer_error_is_that_of_the_outputs(subject: Subject, samples: Samples) -> None:
    version = noisy(subject, 0.2)
    layer = subject.layers[0]
    only = {**subject.weights, layer: version[layer]}
    found = measure(subject, only, reference(subject, samples))
    inputs = subject.trace(samples.tokens).inputs[subject.source[layer]]
    error = inputs @ (version[layer] - subject.weights[layer]).T
    expected = error.square().sum() / (inputs @ subject.weights[layer].T).square().sum()
    assert found["layer all"] * len(subject.layers) == pytest.approx(float(expected), rel=1e-3)


def test_moments_of_masked_and_visible_positions_add_up(subject: Subject, samples: Samples) -> None:
    parts = {p: stage_moments(subject, samples, p) for p in ("all", "masked", "visible")}
    for stage in subject.stages:
        total = parts["masked"][stage] + parts["visible"][stage]
        assert torch.allclose(parts["all"][stage], total, rtol=1e-4, atol=1e-4)


def test_samples_without_masks_leave_the_masked_figures_out(
    subject: Subject, samples: Samples
) -> None:
    clean = Samples(samples.clean, samples.clean, torch.zeros_like(samples.masked))
    found = measure(subject, noisy(subject, 0.2), reference(subject, clean))
    assert "layer visible" in found
    assert not {"layer masked", "final masked", "kl", "rise"} & found.keys()


def test_error_in_the_leading_direction_is_found_there(subject: Subject, samples: Samples) -> None:
    spectrum = Spectrum(subject, samples)
    lead = {stage: vectors[:, :1] for stage, vectors in spectrum.vectors.items()}
    version = {
        layer: weight + 0.1 * weight @ lead[stage] @ lead[stage].T
        for layer, weight in subject.weights.items()
        for stage in [subject.source[layer]]
    }
    found = spectral(subject, version, spectrum)
    assert found["share of error in top 1"] == pytest.approx(1, abs=1e-4)
    assert found["spectral within top 1"] == pytest.approx(0.01, rel=1e-3)
    assert found["spectral without top 1"] < 1e-6


def test_slope_and_curvature_foretell_small_changes(subject: Subject, samples: Samples) -> None:
    version = noisy(subject, 0.02)
    foretold = Curvature(subject, slopes(subject, samples)).measure(version)
    found = measure(subject, version, reference(subject, samples))
    linear = foretold["all layers linearised to logits"]
    assert found["kl"] == pytest.approx(linear, rel=0.1)
    assert foretold["last region linearised to logits"] == pytest.approx(linear, rel=0.1)
    half = {layer: (weight + version[layer]) / 2 for layer, weight in subject.weights.items()}
    middle = Curvature(subject, slopes(subject, samples)).measure(half)
    assert middle["layer first order"] == pytest.approx(foretold["layer first order"] / 2, rel=1e-3)
    assert middle["layer factored fisher"] == pytest.approx(
        foretold["layer factored fisher"] / 4, rel=1e-3
    )


def test_slope_foretells_the_loss_along_itself(subject: Subject, samples: Samples) -> None:
    found = slopes(subject, samples)
    version = {
        layer: weight + 5e-4 * weight.norm() * found.slope[layer] / found.slope[layer].norm()
        for layer, weight in subject.weights.items()
    }
    foretold = Curvature(subject, found).measure(version)["layer first order"]
    gap = Gap(subject, [samples])
    back = {layer: 2 * weight - version[layer] for layer, weight in subject.weights.items()}
    assert foretold > 0
    assert (gap.of(version)[0] - gap.of(back)[0]) / 2 == pytest.approx(foretold, rel=0.05)


def test_shift_of_logits_is_a_derivative(subject: Subject, samples: Samples) -> None:
    errors = {layer: w - subject.weights[layer] for layer, w in noisy(subject, 1).items()}
    logits, shift = logit_shift(subject, samples.tokens, errors)
    step = 1e-3
    with subject.using({k: w + step * errors[k] for k, w in subject.weights.items()}) as moved:
        difference = (moved(samples.tokens) - logits) / step
    assert torch.allclose(difference, shift, atol=0.05 * float(shift.std()))


def test_a_constant_shift_of_logits_changes_no_prediction() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    assert spread(logits, torch.ones(5, 7)) == pytest.approx(0, abs=1e-6)
    assert spread(logits, torch.eye(5, 7)) > 0


def test_stretched_rows_err_at_right_angles_to_the_output(
    subject: Subject, samples: Samples
) -> None:
    moments = stage_moments(subject, samples)
    version = {k: 0.9 * weight for k, weight in noisy(subject, 0.2).items()}
    found = stretched(subject, version, moments)
    inputs = subject.trace(samples.tokens).inputs
    for layer, weight in subject.weights.items():
        x = inputs[subject.source[layer]]
        true, error = x @ weight.T, x @ (found[layer] - weight).T
        along = (true * error).sum(0) / true.square().sum(0)
        assert torch.allclose(along, torch.zeros_like(along), atol=1e-4)
        assert torch.allclose(found[layer] / version[layer], (found[layer] / version[layer])[:, :1])


def test_changed_norm_gains_are_folded_into_the_weights(subject: Subject, samples: Samples) -> None:
    other = qdc.load_original(subject.folder)
    for norm in set(subject.norms.values()):
        gains = other.get_submodule(norm).weight
        assert isinstance(gains, torch.Tensor)
        gains.mul_(torch.linspace(0.5, 2, len(gains)))
    with subject.using(subject.version(other)) as folded:
        assert torch.allclose(folded(samples.tokens), other(samples.tokens), atol=1e-4)


def test_experiments_agree_with_each_other_and_resume(
    subject: Subject, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Subject, "held_out", lambda *_: samples)
    monkeypatch.setattr(Subject, "calibration", lambda *_: samples)
    version = {"feedback": noisy(subject, 0.2)}
    found = explain(subject, version, tmp_path / "explained.json")["feedback"]
    assert found["all"] == pytest.approx(Gap(subject, [samples]).of(version["feedback"]))
    layer, place = subject.layers[1], found[f"layer {subject.layers[1]}"]
    only = {**subject.weights, layer: version["feedback"][layer]}
    assert place == pytest.approx(Gap(subject, [samples]).of(only))
    assert {f"layer {layer}" for layer in subject.layers} < found.keys()
    assert {"errors at masked", "without the constant part", "noise: white weights"} < found.keys()
    assert all(math.isfinite(part) for value in found.values() for part in value)
    monkeypatch.setattr(Gap, "of_module", lambda *_: pytest.fail("run again"))
    again = explain(subject, version, tmp_path / "explained.json")["feedback"]
    assert {k: list(v) for k, v in again.items()} == {k: list(v) for k, v in found.items()}


def test_ranks_and_their_correlation() -> None:
    x = np.array([1.0, 2, 3, 4, 5, 6])
    assert spearman(x, x**3) == pytest.approx(1)
    assert spearman(x, -np.exp(x)) == pytest.approx(-1)
    assert spearman(np.array([1.0, 1, 2]), np.array([5.0, 5, 9])) == pytest.approx(1)


def test_a_power_law_is_predicted_without_a_miss() -> None:
    x = np.linspace(1, 9, 12)
    found = predict(x, 3 * x**1.5)
    assert found.line is not None
    assert found.line[0] == pytest.approx(1)
    assert found.factor == pytest.approx(1)
    assert found.rank == pytest.approx((1, 1, 1))
    assert predict(-x, x).line is None


def test_intervals_widen_with_noise() -> None:
    generator = np.random.default_rng(0)
    x = generator.uniform(1, 2, 20)
    near, far = (predict(x, x * np.exp(s * generator.normal(size=20))) for s in (0.02, 0.5))
    assert near.rank[2] - near.rank[1] < far.rank[2] - far.rank[1]
    assert near.factor is not None
    assert far.factor is not None
    assert near.factor < far.factor


def test_the_population_can_be_compiled_and_is_cached(tmp_path: Path) -> None:
    variants = population()
    assert len({variant.name for variant in variants}) == len(variants)
    registry = standard_registry([])
    for variant in variants:
        check_order(build_plan(variant.pipeline, registry))
    first = compiled(variants[0], EMBEDDED, tmp_path)
    written = (first / "config.json").stat().st_mtime_ns
    assert compiled(variants[0], EMBEDDED, tmp_path) == first
    assert (first / "config.json").stat().st_mtime_ns == written


def test_every_objective_is_a_figure_that_is_measured(subject: Subject, samples: Samples) -> None:
    version = noisy(subject, 0.2)
    states = reference(subject, samples)
    found = measure(subject, version, states) | spectral(
        subject, version, Spectrum(subject, samples)
    )
    found |= Curvature(subject, slopes(subject, samples)).measure(version)
    wanted = {figure.partition(": ")[2] for figure in OBJECTIVES.values()}
    assert wanted <= found.keys()


def test_tables_and_plots_show_every_version(
    subject: Subject, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Subject, "held_out", lambda *_: samples)
    monkeypatch.setattr(Subject, "calibration", lambda *_: samples)
    sizes = dict(zip((f"version-{family}" for family in FAMILIES), range(1, 9), strict=False))
    versions = {name: noisy(subject, 0.2 * size, size) for name, size in sizes.items()}
    bench = Bench(subject)
    rows = [
        bench.row(Variant(name, FAMILIES[sizes[name] - 1], ""), version)
        for name, version in versions.items()
    ]
    for row, size in zip(rows, sizes.values(), strict=True):
        row["rise 0.5"] = 0.1 * size
    explained = explain(subject, {"feedback": versions["version-feedback"]}, tmp_path / "x.json")
    summary = {
        "versions": rows,
        "spectrum": Spectrum(subject, samples).shares(),
        "explained": explained,
    }
    draw(summary, tmp_path)
    assert len({file.read_bytes() for file in tmp_path.glob("*.svg")}) == 4
    text = tables(summary)
    assert all(text.count(name) == 1 for name in versions)
    assert all(f"| {name} |" in text for name in OBJECTIVES)
    assert all(f" {0.1 * size:.4f} |" in text for size in sizes.values())
