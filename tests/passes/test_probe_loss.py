"""probe-loss: every layer's effect is what a plain run of the changed model shows."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from qdc.errors import InvalidCheckpoint
from qdc.ir.costs import LossSensitivity
from qdc.models.predictions import predictions
from qdc.passes.probe_loss import ProbeLoss
from qdc.passkit.probes import Probes
from qdc.runtime.load import load_checkpoint
from qdc.streaming.unit import Unit
from tests.support.checkpoints import MASK, write_checkpoint
from tests.support.compiles import compile_tiny, run_passes, spying
from tests.support.families import CASES, write_family
from tests.support.units import unit_of_model

OPTIONS = "samples=6 length=16 probes=3 batch=2"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probes") / "model"
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=48, vocab=2048, dtype=torch.float32)


def states() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, 64, (5, 16), generator=generator)
    return tokens.masked_fill(torch.rand(5, 16, generator=generator) < 0.4, MASK)


@pytest.mark.parametrize(
    ("family", "everywhere"), [("llada", False), ("dream", False), ("dream", True)]
)
def test_a_probe_is_a_run_of_the_changed_model(
    family: str, everywhere: bool, model: Path, tmp_path: Path
) -> None:
    if family == "dream":
        model = write_family(tmp_path, CASES["dream"], dtype=torch.float32)
    unit = unit_of_model(ProbeLoss(), model)
    shift = 0 if everywhere else unit.model.logits_shift
    tokens = states()
    probes = Probes(unit, list(torch.split(tokens, 2)), 2, everywhere=everywhere)
    changed: dict[str, Tensor] = {}
    for region in unit.graph.regions:
        probes.advance(region)
        for stage in region.stages:
            probes.enter(stage)
            for layer in stage.layers:
                original = probes.weight(layer)
                noise = torch.randn(original.shape, generator=torch.Generator().manual_seed(1))
                changed[layer] = original + 0.1 * noise
                probes.replace(layer, {layer: changed[layer]}, region)
        probes.leave(region)
    used = tokens[:4]
    hidden = torch.ones_like(used, dtype=torch.bool) if everywhere else used == MASK
    plain = load_checkpoint(model, "cpu", torch.float32)
    expected = predictions(plain(used), hidden, shift).double().log_softmax(-1)
    for layer, weight in changed.items():
        module = load_checkpoint(model, "cpu", torch.float32)
        own = module.get_submodule(unit.graph[layer].path)
        own.weight = torch.nn.Parameter(weight)
        found = predictions(module(used), hidden, shift).detach().double().log_softmax(-1)
        divergence = functional.kl_div(found, expected, reduction="batchmean", log_target=True)
        rise, positions = probes.divergence(layer)
        assert positions == int(hidden.sum())
        assert rise == pytest.approx(float(divergence), rel=1e-3)
        assert rise > 0


def test_nothing_changed_is_no_divergence(model: Path) -> None:
    unit = unit_of_model(ProbeLoss(), model)
    probes = Probes(unit, [states()], 1)
    layer = unit.graph.regions[0].stages[0].layers[0]
    for region in unit.graph.regions:
        probes.advance(region)
        if region is unit.graph.regions[0]:
            probes.enter(region.stages[0])
            probes.replace(layer, {layer: probes.weight(layer).clone()}, region)
        probes.leave(region)
    assert probes.divergence(layer)[0] == pytest.approx(0, abs=1e-9)


def test_every_layer_gets_its_weight(model: Path, tmp_path: Path) -> None:
    found: dict[str, LossSensitivity] = {}

    def look(label: str, unit: Unit) -> None:
        for node in unit.layers():
            found[node.name] = unit.graph.require(node.name, LossSensitivity)

    passes = f"probe-loss{{{OPTIONS}}},spy-all"
    run_passes(model, tmp_path, spying(look), passes, stop_after="spy-all")
    assert len(found) == 14
    for note in found.values():
        assert note.rise > 0
        assert note.error > 0
    assert len({note.positions for note in found.values()}) == 1
    again = dict(found)
    run_passes(model, tmp_path, spying(look), passes, stop_after="spy-all")
    assert found == again


def test_predictions_that_are_no_numbers_are_not_taken_for_equal_ones(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = lambda self, hidden: torch.full((len(hidden), 2), torch.nan)  # noqa: E731
    monkeypatch.setattr(Probes, "_predictions", nothing)
    text = f"probe-loss{{{OPTIONS}}},rtn-lower{{group=16}},pack"
    with pytest.raises(InvalidCheckpoint, match="predictions are no numbers") as caught:
        compile_tiny(model, tmp_path / "out", text, samples=None, length=None)
    assert caught.value.where


def test_probed_samples_are_spread_over_the_times() -> None:
    order = ProbeLoss.spread(4, 16).tolist()
    assert order[:4] == [2, 6, 10, 14]
    assert sorted(order) == list(range(16))
    assert sorted(ProbeLoss.spread(3, 3).tolist()) == [0, 1, 2]


def test_clean_text_counts_everywhere(model: Path, tmp_path: Path) -> None:
    found: dict[str, LossSensitivity] = {}

    def look(label: str, unit: Unit) -> None:
        for node in unit.layers():
            found[node.name] = unit.graph.require(node.name, LossSensitivity)

    passes = f"probe-loss{{{OPTIONS} geometry=clean}},spy-all"
    run_passes(model, tmp_path, spying(look), passes, stop_after="spy-all")
    assert {note.positions for note in found.values()} == {3 * 16}
    assert min(note.rise for note in found.values()) > 0
