"""Noise in canvases: what is drawn when, how streams know of it, and who is refused."""

from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from qdc.compiling.savepoints import _samples, read_batch, read_samples
from qdc.disk import write_tensors
from qdc.errors import InvalidCalibration, UnsupportedModel
from qdc.ir.facts import ModelFacts
from qdc.ir.graph import LayerGraph
from qdc.passes.calibrate_mcs import CalibrateMcs
from qdc.passkit.counted import CountedPositions
from qdc.passkit.geometry import grid, noised, scattered
from qdc.passkit.states import States
from qdc.pipeline.maskless import refuse_masks
from qdc.pipeline.passbase import Pass
from qdc.pipeline.plan import Plan
from qdc.planning.configure import geometry_of
from qdc.streaming.batches import Batches
from qdc.streaming.stream import Stream
from qdc.streaming.streamsamples import StreamSamples
from tests.support.units import layers

CANVAS, WORDS = 400, 50
FACTS = ModelFacts(
    family="toy", mask_token_id=None, vocabulary=WORDS, max_length=1000, canvas=CANVAS
)


def texts(samples: int = 8, length: int = 600) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, WORDS, (samples, length), generator=generator)


def graph_of(facts: ModelFacts) -> LayerGraph:
    graph = layers({"q": torch.zeros(4, 8)})
    return LayerGraph(graph.structure.model_copy(update={"model": facts}))


def test_a_canvas_is_noise_as_its_time_says_and_the_text_before_it_stays() -> None:
    clean = texts()
    maskable = torch.ones_like(clean, dtype=torch.bool)
    maskable[:, -5:] = False
    tokens, places = noised(clean, maskable, grid(8), WORDS, CANVAS, seed=3)
    assert not bool(places[:, :-CANVAS].any())
    assert not bool(places[:, -5:].any())
    assert torch.equal(tokens[~places], clean[~places])
    shares = places[:, -CANVAS:-5].double().mean(1)
    assert (shares - grid(8)).abs().max() < 0.1
    assert bool(places[-1, -CANVAS:-5].all())
    # All tokens are drawn alike, whatever stands there: one in WORDS is that of the text.
    counts = tokens[places].bincount(minlength=WORDS).double()
    expected = counts.sum() / WORDS
    assert (counts - expected).abs().max() < 5 * expected**0.5
    assert 0 < (tokens == clean)[places].double().mean() < 3 / WORDS
    masks = scattered(clean, maskable, grid(8), 99, seed=3)[1]
    assert torch.equal(places, masks & (torch.arange(600) >= 600 - CANVAS))
    assert not torch.equal(tokens, noised(clean, maskable, grid(8), WORDS, CANVAS, seed=4)[0])


def test_a_window_no_longer_than_the_canvas_is_canvas_alone() -> None:
    clean = texts(4, 100)
    _, places = noised(clean, torch.ones_like(clean).bool(), torch.ones(4), WORDS, CANVAS, 0)
    assert bool(places.all())


def test_streams_know_the_places_of_noise() -> None:
    clean = texts(5, 20)
    places = torch.rand(clean.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    states = States(clean, clean.flip(0), places, torch.ones(clean.shape), noise=True)
    batches = states.select(torch.tensor([4, 1, 2])).batches(2)
    assert torch.equal(torch.cat((batches + batches[:1]).noised or ()), places[[4, 1, 2, 4, 1]])
    stream = StreamSamples(batches, slice(1, None), None)
    assert torch.equal(stream.masked, places[[4, 1, 2]])
    assert torch.equal(torch.cat(stream.batches().noised or ()), places[[2]])
    masks = States(clean, clean.flip(0), places, torch.ones(clean.shape)).batches(2)
    assert masks.noised is None
    assert not bool(StreamSamples(Batches.of(masks), slice(None), None).masked.any())


def test_predictions_count_on_the_canvas_whatever_is_noise_there() -> None:
    tokens = texts(2, 10)
    for everywhere in (False, True):
        facts = FACTS.model_copy(update={"canvas": 3})
        counted = CountedPositions.of(facts, everywhere=everywhere)
        ((rows, places),) = counted.sources(tokens, None)
        assert rows.tolist() == [0, 0, 0, 1, 1, 1]
        assert places.tolist() == [7, 8, 9] * 2


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"geometry": "mcs"}, "geometry mcs draws masks"),
        ({"geometry": "block-diffusion"}, "geometry block-diffusion draws masks"),
        ({"geometry": "rollout"}, "geometry rollout draws masks"),
        ({"geometry": "tmas"}, "geometry tmas draws masks"),
        ({"pack": "pad"}, "pack pad sets places apart"),
        ({"isolate": True}, "isolate sets places apart"),
        ({"token_weights": "certainty"}, "token-weights certainty reads predictions"),
    ],
)
def test_what_needs_masks_is_refused_by_name(options: dict[str, object], problem: str) -> None:
    step = CalibrateMcs.model_validate({"geometry": "uniform-noise", **options})
    with pytest.raises(UnsupportedModel, match=problem):
        step.check(graph_of(FACTS))


def test_samples_that_hold_no_text_are_refused() -> None:
    CalibrateMcs(geometry="uniform-noise", length=CANVAS + 1).check(graph_of(FACTS))
    with pytest.raises(InvalidCalibration, match="nothing would be read as text"):
        CalibrateMcs(geometry="clean", length=CANVAS).check(graph_of(FACTS))


def test_noise_is_chosen_for_canvases_alone() -> None:
    assert geometry_of(FACTS) == {"geometry": "uniform-noise"}
    chosen = CalibrateMcs.model_validate({**geometry_of(FACTS), "masked_weight": 2.0})
    chosen.check(graph_of(FACTS))
    masks = ModelFacts(family="toy", mask_token_id=1, vocabulary=WORDS, max_length=1000)
    assert geometry_of(masks) == {}
    with pytest.raises(UnsupportedModel, match="the model has none"):
        chosen.check(graph_of(masks))


def test_passes_that_work_on_masks_alone_are_refused_by_name() -> None:
    class OnMasks(Pass):
        """Works on masked positions."""

        name = "on-masks"

        def without_masks(self) -> None:
            return None

    calibration = CalibrateMcs(geometry="uniform-noise")
    refuse_masks(Plan((calibration,)), graph_of(FACTS))
    with pytest.raises(UnsupportedModel, match="masks are what on-masks works on"):
        refuse_masks(Plan((calibration, OnMasks())), graph_of(FACTS))


def test_a_journal_keeps_the_places_of_noise(tmp_path: Path) -> None:
    clean = texts(5, 20)
    places = torch.rand(clean.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    stream = StreamSamples(Batches.split(clean, None, 2, None, places), slice(None), None)
    write_tensors(tmp_path / "samples", _samples(cast(Stream, stream)))
    found = read_samples(tmp_path / "samples")
    assert [len(batch) for batch in found] == [2, 2, 1]
    assert torch.equal(torch.cat(found.noised or ()), places)
    write_tensors(tmp_path / "batch", {"tokens": clean, "noised": places, "held.x": clean.float()})
    batch = read_batch(tmp_path / "batch")
    assert batch.noised is not None
    assert torch.equal(batch.noised, places)
    assert set(batch.values) == {"x"}
