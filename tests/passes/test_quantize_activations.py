"""quantize-activations: what is annotated, what later passes see, and what a loaded model does."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import qdc
from qdc.cli import run
from qdc.comparing.measure import drift
from qdc.errors import InvalidArtifact, InvalidPipeline, QdcError, UnsupportedModel
from qdc.format.uniformgrid import UniformGrid
from qdc.format.weights import Weights
from qdc.frontend.opening import open_model
from qdc.ir.activations import InputCodes, LayerActivations, OutputCodes, RowFormat
from qdc.ir.annotations import Moment
from qdc.ir.attention import ATTENTION, source
from qdc.models.predictions import answers_asked, logits_at
from qdc.numerics import integer_linear
from qdc.numerics.hadamard import RandomHadamard
from qdc.passes.quantize_activations import QuantizeActivations
from qdc.passkit.attention_values import attention_mass, read_by
from qdc.passkit.calibration import CalibrationOptions
from qdc.passkit.token_statistics import ClipSearch, Ranges
from qdc.pipeline.builder import build_plan
from qdc.pipeline.registry import standard_registry
from qdc.runtime.activations import InputTransform, attach, knowing_masked
from qdc.runtime.decoding.loop import decode
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.integers import IntegerLinear
from qdc.streaming.batches import Batches
from qdc.streaming.unit import Unit
from tests.e2e.test_causal import write_causal
from tests.support.artifacts import unsealed
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny, make_job, run_passes, spying
from tests.support.decoding import facts
from tests.support.experts import write_mixture
from tests.support.graphs import two_blocks
from tests.support.natives import write_native
from tests.support.outlooks import forecast_tiny

FINE = "rtn-lower{bits=8 group=8},pack"
MEASURED = "samples=3 length=12 seed=7"
TOKENS = torch.tensor([[2, 3, 1, 5, 1, 1, 8, 9, 10, 1, 12, 13], [1] * 12])
"""Token 1 is the mask."""


@dataclass(frozen=True)
class Stored(Weights):
    """Tensors at hand, by the ends of their names."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)

    def plain(self, name: str) -> Tensor:
        return self.tensors[name.rpartition(".")[2]]

    def stored(self, layer: str) -> dict[str, Tensor]:
        raise NotImplementedError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("activations") / "model"
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=48, dtype=torch.float32)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("activations") / "text.txt"
    path.write_text("a deterministic walk through the standard library, word by word. " * 40)
    return path


@pytest.fixture(scope="module")
def artifact(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything at once: rotated, static scales by class, values, weights on uniform grids."""
    out = tmp_path_factory.mktemp("activations") / "out"
    step = f"{MEASURED} scheme=group group=16 ranges=static zeros=asymmetric scales=f16"
    passes = f"rotate,quantize-activations{{{step} classes=masked values=interaction}},{FINE}"
    compile_tiny(model, out, passes, calibration=text)
    return out


def test_a_loaded_model_multiplies_whole_numbers(
    model: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.dtype, torch.dtype]] = []

    def spy(codes: Tensor, weights: Tensor) -> Tensor:
        seen.append((codes.dtype, weights.dtype))
        return codes.to(torch.int32) @ weights.to(torch.int32).T

    monkeypatch.setattr(integer_linear, "integer_product", spy)
    loaded = qdc.load(artifact, backend="reference")
    linears = [m for m in loaded.modules() if isinstance(m, IntegerLinear)]
    assert len(linears) == 14  # all of both blocks
    found = loaded(TOKENS)
    assert set(seen) == {(torch.int8, torch.int8)}
    assert len(seen) >= len(linears)
    wanted = qdc.load_original(model)(TOKENS)
    assert float((found - wanted).norm() / wanted.norm()) < 0.2


def test_packed_and_reference_agree(artifact: Path) -> None:
    wanted = qdc.load(artifact, backend="reference")(TOKENS)
    found = qdc.load(artifact, backend="cpu{arithmetic=f32}")(TOKENS)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_it_writes_on_with_any_cache(artifact: Path, cache: str) -> None:
    """With caches of blocks the model sees windows of its tokens, and still knows the masked."""
    options = DecodeOptions.model_validate({"length": 8, "steps": 4, "block": 4, "cache": cache})
    found = decode(qdc.load(artifact), [[5, 6, 7]], options, facts(vocabulary=64))
    assert found.tokens.shape == (1, 11)
    assert not (found.tokens == 1).any()


def test_it_is_evaluated(artifact: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--windows", "1", "--seeds", "1", "--ratios", "0.5", "--json"]
    assert run(["eval", str(artifact), "--text", str(text), *asked]) == 0
    assert json.loads(capsys.readouterr().out)["bound"] > 0
    assert run(["verify", str(artifact)]) == 0


def test_bytes_of_static_scales_are_counted(artifact: Path) -> None:
    config = json.loads((artifact / "config.json").read_text())["quantization_config"]
    assert config["mask_token"] == 1
    index = json.loads((artifact / "model.safetensors.index.json").read_text())
    assert sum(name.endswith("input_scale") for name in index["weight_map"]) == 14
    assert sum(name.endswith("input_zero") for name in index["weight_map"]) == 14


def test_predicted_bytes_are_written_ones(model: Path, text: Path, tmp_path: Path) -> None:
    step = f"{MEASURED} ranges=static zeros=asymmetric classes=masked"
    passes = f"quantize-activations{{{step}}},{FINE}"
    plan = forecast_tiny(model, passes, calibration=text)
    report = compile_tiny(model, tmp_path / "out", passes, calibration=text)
    assert report.predicted_bytes == report.tensor_bytes
    assert sum(shard.tensor_bytes for shard in plan.shards) == report.tensor_bytes


def test_masked_tokens_have_scales_of_their_own(artifact: Path) -> None:
    loaded = qdc.load(artifact, backend="reference")
    layer = next(m for m in loaded.modules() if isinstance(m, IntegerLinear))
    reads = layer.get_submodule("reads")
    assert isinstance(reads, InputTransform)
    with knowing_masked(TOKENS == 1):
        scale = reads.codes(torch.randn(*TOKENS.shape, layer.in_features)).scale
    visible, masked = reads.get_buffer("input_scale").float()
    assert not torch.equal(visible, masked)
    assert torch.equal(scale[TOKENS == 1], masked.expand(int((TOKENS == 1).sum()), -1))
    assert torch.equal(scale[TOKENS != 1], visible.expand(int((TOKENS != 1).sum()), -1))
    with pytest.raises(QdcError, match="call the whole model"):
        layer(torch.randn(1, 3, layer.in_features))


def test_values_of_attention_have_few_levels(model: Path, tmp_path: Path) -> None:
    passes = f"quantize-activations{{bits=4 values=plain}},{FINE}"
    compile_tiny(model, tmp_path / "out", passes)
    loaded = qdc.load(tmp_path / "out", backend="reference")
    given: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        return lambda module, read, result: given.update({path: result})

    for path, module in loaded.named_modules():
        if path.endswith(("v_proj", "k_proj")):
            module.register_forward_hook(keep(path))
    loaded(TOKENS)
    for path, value in given.items():
        levels = max(len(row.unique()) for row in value.flatten(0, 1))
        assert (levels <= 15) == path.endswith("v_proj"), path


def test_later_passes_calibrate_on_what_is_left(model: Path, text: Path, tmp_path: Path) -> None:
    """The moment is that of quantized inputs; without the pass it is another."""
    moments: dict[str, list[Tensor]] = {"plain": [], "coarse": []}
    for name, before in (("plain", ""), ("coarse", "quantize-activations{bits=4},")):

        def look(label: str, unit: Unit, name: str = name) -> None:
            for node in unit.layers():
                moments[name].append(unit.get(unit.graph.require(node.name, Moment).tensor))

        passes = f"stages({before}calibrate-mcs{{{MEASURED}}},spy,rtn-lower{{bits=8 group=8}})"
        folder = tmp_path / name
        folder.mkdir()
        run_passes(model, folder, spying(look), passes, stop_after="rtn-lower", calibration=text)
    for plain, coarse in zip(moments["plain"], moments["coarse"], strict=True):
        lost = float((plain - coarse).norm() / plain.norm())
        assert 1e-4 < lost < 0.6


def test_what_streams_compute_is_what_the_artifact_does(model: Path, tmp_path: Path) -> None:
    """The value in front of the head, by a stream at the end of the compile and when loaded."""
    found: list[Tensor] = []

    def look(label: str, unit: Unit) -> None:
        stream = unit.stream(lambda: Batches([TOKENS]))
        for region in unit.graph.regions:
            stream.leave(region)
        head = next(node for node in unit.graph.outside() if node.op == "linear")
        (values,) = stream.compute(head.inputs)
        found.append(values[head.inputs[0]])

    step = "rotate,quantize-activations{bits=4 zeros=asymmetric values=plain}"
    passes = f"{step},rtn-lower{{bits=4}},spy-all,pack"
    run_passes(model, tmp_path, spying(look), passes, states="f32")
    loaded = qdc.load(tmp_path / "out", backend="reference")
    given: list[Tensor] = []
    head = next(m for path, m in loaded.named_modules() if path.endswith("transformer.ff_out"))
    head.register_forward_pre_hook(lambda module, read: given.append(read[0]))
    loaded(TOKENS)
    # Sums in another order move few numbers over the middle between two codes.
    alike = torch.isclose(given[0], found[0], rtol=1e-3, atol=1e-3).all(-1)
    assert float(alike.float().mean()) > 0.75


@pytest.mark.parametrize("kind", ["llada", "llama"])
def test_attention_is_summed_over_heads_and_queries(kind: str, model: Path, tmp_path: Path) -> None:
    """By the attention itself: of qdc's own, and of an exported one that sees what is before."""
    segments = torch.tensor([[1] * 12, [1] * 5 + [2] * 7])
    masses: list[tuple[Tensor, Tensor]] = []

    def look(label: str, unit: Unit) -> None:
        if masses:
            return  # the second region
        stream = unit.stream(lambda: Batches([TOKENS], segments=[segments]))
        attention = next(node for node in unit.graph if node.op == ATTENTION)
        (found,) = stream.compute(tuple(read_by(stream, attention)))
        mass = attention_mass(stream, attention, found, stream.segments_of(0))
        query, key = (found[name] for name in attention.inputs[:2])
        if kind == "llada":
            query, key = query.transpose(1, 2), key.transpose(1, 2)
        seen = segments[:, None, :, None] == segments[:, None, None, :]
        if kind == "llama":
            seen = seen & torch.ones(12, 12, dtype=torch.bool).tril()
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        masses.append((mass, weights.sum((1, 2))))

    folder = model if kind == "llada" else tmp_path / "native"
    if kind == "llama":
        write_causal(folder, kind)
    run_passes(folder, tmp_path, spying(look), "spy,rtn-lower,pack", states="f32")
    ((found, wanted),) = masses
    torch.testing.assert_close(found, wanted)


def test_a_search_clips_where_outliers_cost_more_than_they_are_worth() -> None:
    generator = torch.Generator().manual_seed(0)
    even = torch.rand(64, 256, generator=generator) - 0.5
    peaked = even.clone()
    peaked[:, 0] = 2.0
    search = ClipSearch(RowFormat(bits=4, clip=(1.0, 1.0)), (1.0, 0.5), None)
    search.add(even, torch.zeros(64, dtype=torch.bool), torch.ones(256))
    free = torch.ones(256)
    free[0] = 0  # no weight reads the column of outliers
    search.add(peaked, torch.ones(64, dtype=torch.bool), free)
    assert search.best()[0] == (1.0, 0.5)


def test_static_ranges_are_those_of_each_class() -> None:
    form = RowFormat(bits=8, clip=(1.0, 0.5), static=True, zeros="asymmetric")
    ranges = Ranges(form, 4, torch.device("cpu"))
    values = torch.tensor([[1.0, -2.0, 0.0, 0.5], [8.0, 0.0, 0.0, 0.0]])
    ranges.add(values, torch.tensor([False, True]))
    stored = ranges.stored(form)
    torch.testing.assert_close(stored["input_scale"], torch.tensor([[3 / 255], [4 / 255]]))
    assert stored["input_zero"].tolist() == [[42], [-128]]
    lonely = Ranges(form, 4, torch.device("cpu"))
    lonely.add(values[:1], torch.tensor([False]))
    found = lonely.stored(form)["input_scale"].flatten().tolist()
    assert found[1] == pytest.approx(found[0] / 2)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("group=64", "scheme=group"),
        ("grid=1,0.5", "grid"),
        ("classes=masked", "classes=masked"),
        ("clip=search classes=masked geometry=clean", "write classes=all, as in w4a4"),
        ("clip=0", "above 0"),
        ("clip=often", "or search"),
        ("bits=5", "bits"),
        ("samples=4 geometry=tmas", "samples, geometry is for what is measured"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    model: Path, tmp_path: Path, step: str, said: str
) -> None:
    with pytest.raises(InvalidPipeline, match=said):
        compile_tiny(model, tmp_path / "out", f"quantize-activations{{{step}}},{FINE}")


def test_options_of_samples_go_past_what_draws_none() -> None:
    """Those of the command line, and what an effort prefers."""
    text, registry = "quantize-activations,calibrate-mcs,rtn-lower", standard_registry()
    still, draws, _ = build_plan(text, registry, {"samples": 4}, {"geometry": "clean"}).passes()
    assert still == QuantizeActivations()
    assert isinstance(draws, CalibrationOptions)
    assert (draws.samples, draws.geometry) == (4, "clean")
    with pytest.raises(InvalidPipeline, match="no pass of the pipeline takes --samples"):
        build_plan("quantize-activations,rtn-lower", registry, {"samples": 4})


def test_twice_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidPipeline, match="@input-codes"):
        make_job(
            model,
            tmp_path / "out",
            passes=f"quantize-activations,quantize-activations{{bits=4}},{FINE}",
        )


def test_values_out_of_reach_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="no attention"):
        QuantizeActivations(values="plain").check(two_blocks())
    QuantizeActivations().check(two_blocks())


def test_clean_text_has_one_class() -> None:
    step = QuantizeActivations(clip="search", classes="masked").without_masks()
    assert step is not None
    assert (step.classes, step.geometry) == ("all", "clean")


def test_what_measures_nothing_draws_no_masks() -> None:
    step = QuantizeActivations(bits=4, clip=0.9)
    assert step.without_masks() is step


def test_presets_that_tell_masked_tokens_apart_take_one_class() -> None:
    registry = standard_registry()
    for preset in ("w4a4", "w2a8"):
        with pytest.raises(InvalidPipeline, match="geometry clean masks no token"):
            build_plan(preset, registry, {"geometry": "clean"})
        plan = build_plan(f"{preset}{{classes=all}}", registry, {"geometry": "clean"})
        (step,) = (s for s in plan.passes() if isinstance(s, QuantizeActivations))
        assert (step.classes, step.clip) == ("all", "search")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda q, path: q.pop("mask_token"), "mask_token"),
        (lambda q, path: q.update(mask_token=1 << 20), "no token would be masked"),
        (lambda q, path: q["activations"][path]["input"].update(bits=16), "bits"),
        (lambda q, path: q["activations"][path]["input"].update(clip=[1, 1, 1]), "clip"),
        (lambda q, path: q["activations"][path]["input"].update(static=False), "no place"),
        (lambda q, path: q["activations"][path]["input"].update(group=8), "dtype or shape"),
        (lambda q, path: q["activations"][path].update(output={"bits": 4, "static": True}), "out"),
    ],
)
def test_a_hostile_configuration_is_refused(
    artifact: Path, tmp_path: Path, change: Any, said: str
) -> None:
    copy = unsealed(artifact, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    quantization = config["quantization_config"]
    change(quantization, next(iter(quantization["activations"])))
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidArtifact) as caught:
        qdc.load(copy)
    assert said in str(caught.value)


def test_zero_points_that_are_no_codes_are_refused() -> None:
    form = RowFormat(bits=4, zeros="asymmetric", static=True)
    linear = torch.nn.Linear(8, 2)
    stored = {"input_scale": torch.ones(1, 1), "input_zero": torch.full((1, 1), 8).to(torch.int8)}
    codecs = {"0": UniformGrid(rows=2, columns=8, group=8, bits=8)}
    weights = Stored(codecs, activations={"0": LayerActivations(input=form)}, tensors=stored)
    body = torch.nn.Sequential(linear)
    with pytest.raises(InvalidArtifact, match="-8 to 7"):
        attach(body, body, weights, weights.activations, None, "cpu")


def test_the_annotations_check_themselves() -> None:
    graph = two_blocks()
    node = next(iter(graph.layers()))
    static = RowFormat(bits=8, static=True)
    assert list(InputCodes(form=static).problems(node))
    assert list(OutputCodes(form=static).problems(node))
    assert not list(InputCodes(form=RowFormat(bits=8)).problems(node))
    assert source(graph, node) == ""
    assert RandomHadamard.of(2, 0).size == 2


def test_layers_by_themselves_are_told_which_tokens_are_masked(model: Path, artifact: Path) -> None:
    """As a comparison asks them: on the original's inputs, in batches of its own."""
    graph = open_model(model)[1].graph
    loaded, original = qdc.load(artifact, backend="reference"), qdc.load_original(model)
    loaded(TOKENS[:1])  # of other tokens, which are forgotten
    found = drift(loaded, original, graph, torch.randint(2, 40, (9, 12)), 1)
    assert len(found.layers) == 14
    assert all(0 < share < 0.1 for share in found.layers.values())


@torch.no_grad()
def test_positions_that_are_read_alone_keep_their_scales(artifact: Path) -> None:
    """Behind the attention of the last block there are fewer rows than tokens."""
    loaded = qdc.load(artifact, backend="reference")
    assert answers_asked(loaded)
    rows, columns = torch.tensor([1, 0, 0, 1]), torch.tensor([3, 4, 5, 11])
    found = logits_at(loaded, TOKENS, rows, columns)
    torch.testing.assert_close(found, loaded(TOKENS)[rows, columns], atol=1e-4, rtol=0)


def test_experts_read_codes_too(tmp_path: Path) -> None:
    """The last one of each block never gets a token."""
    model = write_mixture(tmp_path / "model", experts=4, count=1, idle=True)
    compile_tiny(model, tmp_path / "out", f"rotate,quantize-activations,{FINE}")
    wanted = qdc.load_original(model)(TOKENS)
    found = qdc.load(tmp_path / "out", backend="reference")(TOKENS)
    assert float((found - wanted).norm() / wanted.norm()) < 0.1
    with pytest.raises(UnsupportedModel, match="places"):
        compile_tiny(
            model,
            tmp_path / "classes",
            f"quantize-activations{{{MEASURED} clip=search classes=masked}},{FINE}",
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "llama", "qwen3-moe"])
def test_classes_of_transformers_follow(kind: str, tmp_path: Path) -> None:
    model = write_native(tmp_path / "model", kind)
    compile_tiny(model, tmp_path / "out", f"rotate,quantize-activations,{FINE}")
    tokens = torch.randint(2, 40, (2, 12))
    wanted = qdc.load_original(model)(tokens)
    for backend in ("reference", "cpu{arithmetic=f32}"):
        found = qdc.load(tmp_path / "out", backend=backend)(tokens)
        assert float((found - wanted).norm() / wanted.norm()) < 0.1
    valued = f"quantize-activations{{{MEASURED} values=interaction}},{FINE}"
    compile_tiny(model, tmp_path / "values", valued)
    found = qdc.load(tmp_path / "values", backend="reference")(tokens)
    assert 0 < float((found - wanted).norm() / wanted.norm()) < 0.1
