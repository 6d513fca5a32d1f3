"""What every preset that quantizes must obey, whoever brought it, on a tiny model.

A preset is compiled once and looked at from all sides; of each lowering one preset is compiled
again, and the others are slow tests. Whoever adds a quantizer writes nothing here.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import qdc
from qdc.artifact.config import QuantizationConfig, parse_codec, parse_quantization
from qdc.artifact.digests import DIGESTS
from qdc.errors import InvalidArtifact
from qdc.format.codec import Codec, Lowered
from qdc.ir.dump import read, to_bytes
from qdc.ir.printer import render
from qdc.passkit import Lowering
from qdc.pipeline.builder import build_plan
from qdc.pipeline.passbase import Pass
from qdc.pipeline.registry import standard_registry
from qdc.report.model import CompileReport
from tests.support.artifacts import unsealed
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny
from tests.support.outlooks import forecast_tiny
from tests.support.running import assert_packed_alike
from tests.support.texts import TEXT

REGISTRY = standard_registry()
FEWER = {"polish": ("iterations", 2), "trellis-lower": ("window", 8)}
"""An option of a pass that would take long, and what it is set to."""
LINEARS = 7
"""Of a block of the model: all of them are quantized."""
TOKENS = torch.tensor([[5, 6, 7, 1, 9, 1]])


"""Short: most of a tiny compile would be the time to read all of the embedded text."""


def steps(name: str) -> list[Pass]:
    """The passes of a preset."""
    return list(build_plan(REGISTRY.presets[name].text, REGISTRY).passes())


def lowerings(name: str) -> list[str]:
    """Names of the passes of a preset that lower layers."""
    return [step.name for step in steps(name) if isinstance(step, Lowering)]


def short(name: str) -> str:
    """The pipeline of a preset, with fewer steps in the passes that take long.

    Nearly all weights of the tiny model are its vocabulary's: nothing that counts those as well can
    have fewer bits than they.
    """
    text = REGISTRY.presets[name].text.replace("count=effective", "count=effective budget=4.6")
    for step, (option, value) in FEWER.items():
        given = re.search(rf"(?<![\w-]){step}(?![\w-])(?:{{([^}}]*)}})?", text)
        if given is not None:
            others = [each for each in (given[1] or "").split() if each.partition("=")[0] != option]
            written = " ".join([f"{option}={value}", *others])
            text = f"{text[: given.start()]}{step}{{{written}}}{text[given.end() :]}"
    return text


PRESETS = sorted(name for name in REGISTRY.presets if lowerings(name))
TWICE = sorted(
    min((name for name in PRESETS if kind in lowerings(name)), key=lambda name: len(short(name)))
    for kind in {kind for name in PRESETS for kind in lowerings(name)}
)
"""The shortest preset of each lowering."""
every_preset = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in TWICE)) for n in PRESETS]
)


@dataclass(frozen=True)
class Compiled:
    """A preset's artifact and what was said of it."""

    out: Path
    report: CompileReport

    @property
    def config(self) -> QuantizationConfig:
        return parse_quantization(json.loads((self.out / "config.json").read_text()))

    def codecs(self) -> dict[str, Codec]:
        """Of each quantized layer, as a reader gets it."""
        return {
            layer: parse_codec(layer, fields, REGISTRY.codecs())
            for layer, fields in self.config.layers.items()
        }

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is stored, by its full name."""
        files = sorted(self.out.glob("*.safetensors"))
        return {name: tensor for file in files for name, tensor in load_file(file).items()}

    def stored(self, layer: str, codec: Codec) -> dict[str, Tensor]:
        """What the artifact holds of a layer, by suffix."""
        found = self.tensors()
        return {suffix: found[f"{layer}.{suffix}"] for suffix in codec.specification()}

    def one_of_each_form(self) -> dict[str, Codec]:
        """Layers that differ in codec or shape: others of them are stored alike."""
        found: dict[tuple[str, int, int], tuple[str, Codec]] = {}
        for layer, codec in self.codecs().items():
            found.setdefault((codec.name, codec.rows, codec.columns), (layer, codec))
        return dict(found.values())


Compile = Callable[[str], Compiled]


def reading(name: str, model: Path) -> dict[str, Any]:
    """The option that names the text, where a preset reads one."""
    reads = any(step.reads_calibration for step in steps(name))
    return {"calibration": model.with_name("text.txt")} if reads else {}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One block; its linears have 32 or 160 inputs, so that a last block of columns is ragged."""
    folder = tmp_path_factory.mktemp("every") / "model"
    folder.with_name("text.txt").write_text(TEXT)
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=160, n_layers=1)


@pytest.fixture(scope="module")
def compiled(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compile a preset, once however often it is asked for."""

    @cache
    def compile_once(name: str) -> Compiled:
        out = tmp_path_factory.mktemp("compiled") / "out"
        return Compiled(out, compile_tiny(model, out, short(name), **reading(name, model)))

    return compile_once


@every_preset
def test_stored_bytes_are_the_predicted_ones(name: str, compiled: Compile) -> None:
    found = compiled(name)
    report, tensors = found.report, found.tensors()
    assert report.predicted_bytes == report.tensor_bytes
    assert sum(tensor.nbytes for tensor in tensors.values()) == report.tensor_bytes
    codecs = found.codecs()
    lowered = [layer for layer in report.layers if layer.name.startswith("blocks.")]
    assert len(lowered) == LINEARS
    by_path = {path.rsplit(".", 1)[-1]: path for path in codecs if ".blocks." in path}
    for layer in lowered:
        path = by_path[layer.name.rsplit(".", 1)[-1]]
        codec = codecs[path]
        held = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{path}.")}
        held.pop(f"{path}.bias", None)
        assert set(held) == {f"{path}.{suffix}" for suffix in codec.specification()}
        assert sum(tensor.nbytes for tensor in held.values()) == codec.nbytes
        assert layer.codec == codec.name
        assert 0 < layer.payload_bits == codec.payload_bits <= 8 * codec.nbytes


@every_preset
def test_logits_are_those_of_the_dense_weights(
    name: str, compiled: Compile, tmp_path: Path
) -> None:
    found = compiled(name)
    logits = qdc.load(found.out, backend="reference")(TOKENS)
    assert logits.isfinite().all()
    qdc.export(found.out, out=tmp_path / "dense", dtype="f32", verify=True)
    same = qdc.load_original(tmp_path / "dense")(TOKENS)
    torch.testing.assert_close(logits, same, rtol=1e-4, atol=1e-4)
    written = {
        key: tensor
        for file in (tmp_path / "dense").glob("*.safetensors")
        for key, tensor in load_file(file).items()
    }
    for layer, codec in found.one_of_each_form().items():
        dense = codec.dense(codec.unpack(found.stored(layer, codec)))
        assert dense.shape == (codec.rows, codec.columns)
        assert torch.equal(written[f"{layer}.weight"], dense)
        for rows in (slice(3, 11), torch.tensor([4, 0, 4])):
            assert torch.equal(codec.dense_rows(found.stored(layer, codec), rows), dense[rows])
    assert_packed_alike(found.out, lambda model: model(TOKENS))


@every_preset
def test_the_plan_foresees_what_is_stored(name: str, model: Path, compiled: Compile) -> None:
    outlook = forecast_tiny(model, short(name), REGISTRY, **reading(name, model))
    report = compiled(name).report
    assert outlook.unknown == ()
    if all(kind.codec is not None for kind in outlook.kinds):  # else sizes depend on the data
        lowest, highest = (
            outlook.tensor_bytes - outlook.fewer,
            outlook.tensor_bytes + outlook.more,
        )
        assert lowest <= report.tensor_bytes <= highest
    assert outlook.layers == len([x for x in report.layers if x.name.startswith("blocks.")])
    inside = [kind for kind in outlook.kinds if kind.kind.startswith("blocks.")]
    codecs = {kind.codec for kind in inside if kind.codec is not None}
    assert codecs <= {layer.codec for layer in report.layers}
    # A polish that gains nothing does not look at its result once more.
    unseen = any(remark.startswith("missed polish") for remark in report.remarks)
    assert outlook.forwards == pytest.approx(report.layer_forwards + unseen, rel=0.1)


@every_preset
def test_the_dump_is_read_back(name: str, compiled: Compile) -> None:
    path = compiled(name).out / "ir.qdc"
    graph = read(path, REGISTRY.annotations())
    assert to_bytes(graph) == path.read_bytes()
    notes = [note for node in graph.layers() for note in graph.annotations(node.name).values()]
    assert len([note for note in notes if isinstance(note, Lowered)]) == LINEARS
    assert "unknown tag" not in render(graph)


@every_preset
def test_damaged_tensors_are_refused_or_decode(name: str, compiled: Compile) -> None:
    found = compiled(name)
    for layer, codec in found.one_of_each_form().items():
        stored = found.stored(layer, codec)
        for suffix, tensor in stored.items():
            other = torch.float32 if tensor.dtype == torch.int32 else torch.int32
            refused = [tensor[None], tensor.flatten()[1:], tensor.to(other)]
            if tensor.is_floating_point():
                refused.append(torch.full_like(tensor, float("nan")))
            for damaged in refused:
                with pytest.raises(InvalidArtifact):
                    codec.check({**stored, suffix: damaged}, layer)
            with pytest.raises(InvalidArtifact):
                codec.check({key: stored[key] for key in stored if key != suffix}, layer)
            for damaged in extremes(tensor):
                decode_or_refuse(codec, {**stored, suffix: damaged}, layer)


def extremes(tensor: Tensor) -> list[Tensor]:
    """The same type, filled with what it holds at most, at least, and at random."""
    if tensor.is_floating_point():
        most = torch.finfo(tensor.dtype).max
        return [torch.full_like(tensor, most), torch.full_like(tensor, -most)]
    kind = torch.iinfo(tensor.dtype)
    generator = torch.Generator().manual_seed(0)
    some = torch.randint(
        kind.min, kind.max, tensor.shape, generator=generator, dtype=torch.int64
    ).to(tensor.dtype)
    return [torch.full_like(tensor, kind.max), torch.full_like(tensor, kind.min), some]


def decode_or_refuse(codec: Codec, stored: dict[str, Tensor], layer: str) -> None:
    """Nothing but ``InvalidArtifact`` comes of tensors of the right type, whatever they hold."""
    try:
        codec.check(stored, layer)
    except InvalidArtifact:
        return
    dense = codec.dense(codec.unpack(stored))
    assert (dense.shape, dense.dtype) == ((codec.rows, codec.columns), torch.float32)


@pytest.mark.parametrize("name", TWICE)
def test_a_second_compile_gives_the_same_bytes(
    name: str, model: Path, compiled: Compile, tmp_path: Path
) -> None:
    compile_tiny(model, tmp_path / "out", short(name), **reading(name, model))
    # The digests of all files, one a line.
    assert (tmp_path / "out" / DIGESTS).read_bytes() == (compiled(name).out / DIGESTS).read_bytes()


@pytest.mark.parametrize("name", TWICE)
def test_an_artifact_with_another_shape_is_refused(
    name: str, compiled: Compile, tmp_path: Path
) -> None:
    found = compiled(name)
    out = unsealed(found.out, tmp_path / "out")
    layer, codec = next((k, c) for k, c in found.codecs().items() if ".blocks." in k)
    key = f"{layer}.{next(iter(codec.specification()))}"
    (file,) = (f for f in out.glob("*.safetensors") if key in load_file(f))
    tensors = load_file(file)
    tensors[key] = tensors[key].flatten()[1:].contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InvalidArtifact, match=re.escape(key.rsplit(".", 1)[-1])):
        qdc.load(out, backend="reference")
