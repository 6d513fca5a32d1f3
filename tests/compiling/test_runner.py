"""The runner: order of calls, calibration, spilling, scratch."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qdc.errors import InvalidGraph
from qdc.format.codec import Lowered
from qdc.ir.annotations import Moment, Packed
from qdc.numerics.threads import SMALL_LAYER
from qdc.numerics.uniform import dense_uniform, fit_uniform
from qdc.passkit.geometry import behind_prefix, grid, scattered
from qdc.passkit.windows import draw_joined
from qdc.runtime.load import load_artifact, load_checkpoint
from qdc.streaming.unit import Unit
from qdc.text.joined import join
from qdc.text.source import read_text
from qdc.text.tokenizer import encoder, load_tokenizer
from tests.support.checkpoints import MASK, write_checkpoint
from tests.support.compiles import LENGTH, SAMPLES, compile_tiny, names, run_passes, spying

REGIONS = ["blocks.0", "blocks.1"]
QKV, OUT, UP, DOWN = (
    ["q_proj", "k_proj", "v_proj"],
    ["attn_out"],
    ["ff_proj", "up_proj"],
    ["ff_out"],
)
STAGES = [QKV, OUT, UP, DOWN]
CALIBRATE = {"samples": SAMPLES, "length": LENGTH}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runner") / "model"
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=48, dtype=torch.float32)


def test_calls_come_region_by_region_and_stage_by_stage(model: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, str, list[str]]] = []

    def note(label: str, unit: Unit) -> None:
        short = [name.removeprefix(f"{unit.name}.") for name in names(unit.layers())]
        calls.append((label, unit.name, short))
        assert unit.whole_region == (label not in "ab")

    text = "stages(spy{label=a},spy{label=b}),spy{label=c},spy-all{label=d},spy{label=e}"
    run_passes(model, tmp_path, spying(note), text, stop_after="spy")
    region = [layer for stage in STAGES for layer in stage]
    everything = [f"{name}.{layer}" for name in REGIONS for layer in region]
    expected = []
    for name in REGIONS:
        for stage in STAGES:
            expected += [("a", name, stage), ("b", name, stage)]
        expected.append(("c", name, region))
    expected.append(("d", "model", everything))
    expected += [("e", name, region) for name in REGIONS]
    assert calls == expected


def samples(model: Path) -> Tensor:
    source = read_text(None)
    encode = encoder(load_tokenizer(model))
    clean = draw_joined(join(source.documents, encode), SAMPLES, LENGTH, 0).windows
    return scattered(clean, behind_prefix(SAMPLES, LENGTH, 0), grid(SAMPLES), MASK, 0)[0]


def plain_moment(module: nn.Module, path: str, tokens: Tensor) -> Tensor:
    """``X^T X / tokens`` of what a linear reads, by a hook."""
    seen: list[Tensor] = []
    layer = module.get_submodule(path)
    hook = layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    module(tokens)
    hook.remove()
    flat = seen[0].flatten(0, 1).double()
    return (flat.T @ flat / len(flat)).float()


def round_weight(module: nn.Module, path: str) -> None:
    weight = module.get_submodule(path).get_parameter("weight")
    weight.data = dense_uniform(fit_uniform(weight.data, 2))


@pytest.mark.parametrize(
    ("passes", "quantized"),
    [
        ("calibrate-mcs,spy,rtn-lower,pack", False),
        ("stages(calibrate-mcs{batch=3},spy,rtn-lower),pack", True),
        ("stages(calibrate-mcs{batch=3},spy,rtn-lower,pack)", True),
    ],
)
def test_the_stream_is_quantized_inside_stages_alone(
    passes: str, quantized: bool, model: Path, tmp_path: Path
) -> None:
    moments: dict[str, Tensor] = {}

    def grab(label: str, unit: Unit) -> None:
        for node in unit.layers():
            moments[node.path] = unit.get(unit.graph.require(node.name, Moment).tensor).clone()

    run_passes(model, tmp_path, spying(grab), passes, stop_after="pack", **CALIBRATE)
    module = load_checkpoint(model, "cpu", torch.float32)
    tokens = samples(model)
    for region in REGIONS:
        for stage in STAGES:
            paths = [f"model.transformer.{region}.{layer}" for layer in stage]
            for path in paths:
                expected = plain_moment(module, path, tokens)
                torch.testing.assert_close(moments[path], expected, rtol=1e-4, atol=1e-6)
            if quantized:
                for path in paths:
                    round_weight(module, path)
    assert len(moments) == 14


def test_a_second_calibration_of_the_same_options_has_a_stream_of_its_own(
    model: Path, tmp_path: Path
) -> None:
    moments: dict[tuple[str, str], Tensor] = {}

    def grab(label: str, unit: Unit) -> None:
        for node in unit.layers():
            note = unit.graph.require(node.name, Moment)
            moments[label, node.path] = unit.get(note.tensor).clone()

    text = "stages(calibrate-mcs,spy{label=a},rtn-lower),calibrate-mcs,spy{label=b}"
    run_passes(model, tmp_path, spying(grab), text, stop_after="spy", **CALIBRATE)
    module, tokens = load_checkpoint(model, "cpu", torch.float32), samples(model)
    layers = [f"{name}.{layer}" for name in REGIONS for stage in STAGES for layer in stage]
    for layer in layers:
        round_weight(module, f"model.transformer.{layer}")
    for layer in layers:
        path = f"model.transformer.{layer}"
        expected = plain_moment(module, path, tokens)
        for label in "ab":
            torch.testing.assert_close(moments[label, path], expected, rtol=1e-4, atol=1e-6)


def test_tensors_outlive_a_barrier(model: Path, tmp_path: Path) -> None:
    seen: dict[str, Tensor] = {}

    def look(label: str, unit: Unit) -> None:
        for node in unit.layers():
            lowered = unit.graph.require(node.name, Lowered)
            dense = lowered.codec.dense(lowered.working(unit.tensors))
            assert torch.equal(seen.setdefault(node.name, dense), dense)
        assert not list(unit.tensors.held()) or label == "a"

    text = "rtn-lower,spy{label=a},spy-all{label=b},spy-all{label=c},spy{label=d}"
    run_passes(model, tmp_path, spying(look), text, stop_after="spy")
    assert len(seen) == 14


def test_a_barrier_does_not_change_the_artifact(model: Path, tmp_path: Path) -> None:
    registry = spying(lambda label, unit: None)
    for out, text in (("a", "rtn-lower,pack"), ("b", "rtn-lower,spy-all,pack,spy-all")):
        run_passes(model, tmp_path / out, registry, text)
    shards = sorted(p.name for p in (tmp_path / "a" / "out").glob("*.safetensors"))
    assert len(shards) == 3
    for name in shards:
        one, two = ((tmp_path / out / "out" / name).read_bytes() for out in "ab")
        assert one == two
    module = load_artifact(tmp_path / "b" / "out", registry, "cpu", torch.float32)
    assert module(torch.tensor([[2, 3]])).isfinite().all()


@pytest.mark.parametrize(
    "text", ["stages(calibrate-mcs),spy", "calibrate-mcs,spy-all", "stages(calibrate-mcs),spy-all"]
)
def test_released_scratch_says_so(text: str, model: Path, tmp_path: Path) -> None:
    def read(label: str, unit: Unit) -> None:
        (node, *_) = unit.layers()
        note = unit.graph.require(node.name, Moment)
        assert unit.find(note.tensor) is None
        unit.get(note.tensor)

    registry, last = spying(read), text.rpartition(",")[2]
    with pytest.raises(InvalidGraph, match="was released") as caught:
        run_passes(model, tmp_path, registry, text, stop_after=last, **CALIBRATE)
    assert "scratch tensors live for one stage or region" in caught.value.help


def test_only_one_regions_statistics_are_in_memory(model: Path, tmp_path: Path) -> None:
    held: list[set[str]] = []

    def look(label: str, unit: Unit) -> None:
        held.append({name for name, _ in unit.tensors.held()})

    text = "stages(calibrate-mcs,sensitivity,spy,rtn-lower),pack"
    run_passes(model, tmp_path, spying(look), text, **CALIBRATE)
    assert len(held) == 8
    for number, tensors in enumerate(held):
        statistics = {name for name in tensors if name.endswith((":moment", ":factor"))}
        assert len(statistics) == 2
        assert all(f"blocks.{number // 4}." in name for name in tensors)


def test_rounding_ignores_statistics_that_are_gone(model: Path, tmp_path: Path) -> None:
    report = compile_tiny(model, tmp_path / "out", "stages(calibrate-mcs),rtn-lower,pack")
    assert {layer.error for layer in report.layers} == {None}


def test_a_second_lowering_replaces_the_first(model: Path, tmp_path: Path) -> None:
    compile_tiny(model, tmp_path / "once", "rtn-lower{bits=4},pack")
    compile_tiny(model, tmp_path / "twice", "rtn-lower{bits=1},pack,rtn-lower{bits=4},pack")
    for name in ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


def test_a_new_lowering_takes_the_packed_form_away(model: Path, tmp_path: Path) -> None:
    def look(label: str, unit: Unit) -> None:
        for node in unit.layers():
            assert (unit.graph.get(node.name, Packed) is None) == (label == "b")

    text = "rtn-lower,pack,spy{label=a},rtn-lower,spy{label=b}"
    run_passes(model, tmp_path, spying(look), text, stop_after="spy")


def test_lowering_twice_does_not_gather_tensors(model: Path, tmp_path: Path) -> None:
    """What a second lowering replaces is released: memory does not grow with depth."""
    held: list[int] = []

    def look(label: str, unit: Unit) -> None:
        held.append(sum(tensor.nbytes for _, tensor in unit.tensors.held()))

    run_passes(model, tmp_path / "a", spying(look), "rtn-lower,rtn-lower{bits=4},pack,spy")
    once: list[int] = list(held)
    held.clear()
    run_passes(model, tmp_path / "b", spying(look), "rtn-lower{bits=4},pack,spy")
    assert once == held
    assert len(set(held)) == 1


@pytest.mark.parametrize(("small", "threads"), [(SMALL_LAYER, 1), (1, 2)])
def test_passes_over_small_layers_run_on_one_thread(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: int, threads: int
) -> None:
    """On a machine that is busy, threads that wait for each other cost more than they compute."""
    monkeypatch.setattr("qdc.compiling.runner.SMALL_LAYER", small)
    torch.set_num_threads(2)
    seen: set[int] = set()
    note = spying(lambda label, unit: seen.add(torch.get_num_threads()))
    run_passes(model, tmp_path, note, "spy{label=a}", stop_after="spy")
    assert seen == {threads}
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
