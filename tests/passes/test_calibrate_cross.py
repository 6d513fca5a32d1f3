"""calibrate-cross: the moment of calibrate-mcs, and the drift from the original model."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import qdc
from qdc.errors import InvalidGraph, InvalidPipeline, MissingAnnotation
from qdc.ir.annotations import Moment
from qdc.ir.cross import CrossMoment
from qdc.ir.verify import verify
from qdc.streaming.execute import Environment, Executor
from qdc.streaming.unit import Unit
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny, run_passes, spying
from tests.support.graphs import annotated, ref, two_blocks

OPTIONS = "samples=3 length=12 seed=7"
Found = dict[str, tuple[Tensor, Tensor, float]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cross") / "model"
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=48, dtype=torch.float32)


def collect(model: Path, folder: Path, text: Path, passes: str) -> Found:
    """By layer: moment, cross moment and drift at the spy (zeros without a cross moment)."""
    found: Found = {}

    def look(label: str, unit: Unit) -> None:
        for node in unit.layers():
            moment = unit.get(unit.graph.require(node.name, Moment).tensor).clone()
            note = unit.graph.get(node.name, CrossMoment)
            cross = torch.zeros(()) if note is None else unit.get(note.tensor).clone()
            found[node.name] = moment, cross, 0.0 if note is None else note.drift

    run_passes(model, folder, spying(look), passes, stop_after="rtn-lower", calibration=text)
    return found


@pytest.mark.parametrize("extra", ["", " masked-weight=3", " geometry=clean", " batch=2"])
def test_the_moment_is_that_of_calibrate_mcs(
    model: Path, text: Path, tmp_path: Path, extra: str
) -> None:
    passes = f"stages(calibrate-cross{{{OPTIONS}{extra}}},spy,rtn-lower)"
    cross = collect(model, tmp_path, text, passes)
    plain = collect(model, tmp_path, text, passes.replace("-cross", "-mcs"))
    assert cross.keys() == plain.keys()
    for name, (moment, _, _) in cross.items():
        assert torch.equal(moment, plain[name][0])


@pytest.mark.parametrize(("name", "streams"), [("mcs", 1), ("cross", 2)])
def test_no_batch_is_held_while_the_next_one_is_computed(
    name: str, streams: int, model: Path, text: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """When one is computed, no more is there than what other streams made of the same batch."""
    given: list[list[weakref.ref[Tensor]]] = []
    held: list[int] = []
    run = Executor.run

    def watched(self: Executor, *arguments: Any, **keywords: Any) -> Environment:
        held.append(sum(any(each() is not None for each in found) for found in given))
        found = run(self, *arguments, **keywords)
        given.append([weakref.ref(value) for value in found.values() if value.is_floating_point()])
        return found

    monkeypatch.setattr(Executor, "run", watched)
    passes = f"stages(calibrate-{name}{{{OPTIONS} batch=1}},rtn-lower),pack"
    run_passes(model, tmp_path, spying(lambda label, unit: None), passes, calibration=text,
               states="bf16")  # fmt: skip
    assert len(held) > 10 * streams
    assert max(held) == streams - 1


@pytest.mark.parametrize("order", ["natural", "outputs-first"])
def test_the_streams_part_where_layers_are_quantized(
    model: Path, text: Path, tmp_path: Path, order: str
) -> None:
    passes = f"stages{{order={order}}}(calibrate-cross{{{OPTIONS}}},spy,rtn-lower)"
    if order == "natural":
        passes = passes.replace("{order=natural}", "")
    found = collect(model, tmp_path, text, passes)
    for name, (moment, cross, drift) in found.items():
        first = name.startswith("blocks.0.")
        untouched = "q_proj" in name or "k_proj" in name or "v_proj" in name
        if first and (untouched or (order == "outputs-first" and "attn_out" in name)):
            assert not cross.any()
            assert drift == 0
        elif not first:
            assert 0.001 < drift < 2
            assert float(cross.norm()) > 0.001 * float(moment.norm())


def test_outside_stages_it_is_refused(model: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidPipeline, match="outside stages"):
        collect(model, tmp_path, text, f"calibrate-cross{{{OPTIONS}}},spy,rtn-lower")


def test_a_cross_moment_is_what_its_docstring_says(model: Path, text: Path, tmp_path: Path) -> None:
    """Cov(x0 - x, x): with the moment of both streams known for the stage, x0 = x gives S - S."""
    batches = {}
    for batch in (1, 3):
        passes = f"stages(calibrate-cross{{{OPTIONS} batch={batch}}},spy,rtn-lower)"
        batches[batch] = collect(model, tmp_path, text, passes)
    for name, (_, cross, drift) in batches[1].items():
        torch.testing.assert_close(batches[3][name][1], cross, rtol=1e-3, atol=1e-5)
        assert batches[3][name][2] == pytest.approx(drift, rel=1e-3, abs=1e-9)


def test_gptaq_compiles_and_differs_from_gptq(model: Path, text: Path, tmp_path: Path) -> None:
    states = {}
    for name in ("gptq", "gptaq"):
        compile_tiny(model, tmp_path / name, name, calibration=text, samples=3, length=12)
        states[name] = qdc.load(tmp_path / name, backend="reference").state_dict()
    differing = {k for k, v in states["gptq"].items() if not torch.equal(v, states["gptaq"][k])}
    assert not any("blocks.0.q_proj" in name for name in differing)
    assert any("blocks.1." in name for name in differing)


def test_the_note_says_how_far_and_must_fit_the_layer() -> None:
    fits = CrossMoment(tensor=ref("a", 8, 8), drift=0.031)
    graph = annotated(two_blocks(), h0__gate=fits)
    verify(graph, tensors={"a"})
    assert fits.text() == "f32[8,8]   drift 3.1e-02"
    wrong = CrossMoment(tensor=ref("a", 4, 4), drift=0)
    with pytest.raises(InvalidGraph, match="does not fit 8 input columns"):
        verify(annotated(two_blocks(), h0__gate=wrong), tensors={"a"})


def test_the_residual_stream_counts_where_a_layer_adds_to_it(
    model: Path, text: Path, tmp_path: Path
) -> None:
    found: dict[str, tuple[tuple[int, ...] | None, float]] = {}

    def look(label: str, unit: Unit) -> None:
        for node in unit.layers():
            residual = unit.graph.require(node.name, CrossMoment).residual
            value = 0.0 if residual is None else float(unit.get(residual).abs().max())
            found[node.name] = (None if residual is None else residual.shape, value)

    passes = f"stages(calibrate-cross{{{OPTIONS}}},spy,rtn-lower)"
    run_passes(model, tmp_path, spying(look), passes, stop_after="rtn-lower", calibration=text)
    shapes = {name: shape for name, (shape, _) in found.items()}
    assert shapes["blocks.0.attn_out"] == (32, 32)
    assert shapes["blocks.1.ff_out"] == (32, 48)
    assert shapes["blocks.1.q_proj"] is shapes["blocks.1.up_proj"] is None
    assert found["blocks.0.attn_out"][1] == 0, "nothing has drifted before the first layer"
    assert found["blocks.1.attn_out"][1] > 0
    found.clear()
    without = passes.replace("{", "{residual=false ", 1)
    run_passes(model, tmp_path, spying(look), without, stop_after="rtn-lower", calibration=text)
    assert {shape for shape, _ in found.values()} == {None}


def test_taking_the_drift_back_needs_it_and_changes_the_weights(
    model: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(MissingAnnotation, match="cross-moment"):
        compile_tiny(
            model,
            tmp_path / "lacks",
            "stages(calibrate-mcs,sensitivity,abmp-allocate,daq-lower{asymmetry=1}),pack",
        )
    original = qdc.load_original(model)
    tokens = torch.randint(2, 60, (8, 24), generator=torch.Generator().manual_seed(0))
    errors = {}
    for share in (0, 1):
        out = tmp_path / f"share{share}"
        passes = (
            "stages(calibrate-cross{samples=20 length=24},sensitivity,abmp-allocate,"
            f"daq-lower{{asymmetry={share}}}),pack"
        )
        qdc.compile(model, passes, out=out, calibration=text, write_report=False)
        errors[share] = float(
            (qdc.load(out, backend="reference")(tokens) - original(tokens)).square().mean()
        )
    assert errors[0] != errors[1]
