"""Tuned parameters: what calibration saw is what is stored, shown and loaded."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import qdc
from qdc.checkpoint.folder import Checkpoint
from qdc.compiling.compiler import run_job
from qdc.errors import InvalidArtifact, InvalidGraph
from qdc.ir.dump import read
from qdc.ir.graph import LINEAR
from qdc.ir.printer import render
from qdc.ir.tuned import Tuned
from qdc.pipeline.passbase import Pass
from qdc.pipeline.registry import Registry, standard_registry
from qdc.streaming.unit import Unit
from tests.support.artifacts import unsealed
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import make_job, run_passes

Q_PROJ = "model.transformer.blocks.0.q_proj"
TOKENS = torch.tensor([[5, 6, 7, 8], [9, 10, 1, 1]])
PASSES = "rtn-lower{bits=4},pack,tune,watch"


class Tune(Pass):
    """Widen every norm gain of the region and give every linear a bias."""

    name: ClassVar[str] = "tune"

    def run(self, unit: Unit) -> None:
        assert unit.region is not None
        for node in (unit.graph[name] for name in unit.region.nodes):
            if node.op == "rms-norm":
                gain = unit.tune(node, "weight", 1.0371 * unit.current(node))
                assert torch.equal(gain, unit.current(node))
            elif node.op == LINEAR:
                unit.tune(node, "bias", torch.linspace(-0.1, 0.1, node.rows))


class Watch(Pass):
    """Note what every stage reads in the calibration stream."""

    name: ClassVar[str] = "watch"
    seen: ClassVar[dict[str, Tensor]] = {}

    def run(self, unit: Unit) -> None:
        stream = unit.stream(lambda: [TOKENS])
        for stage in unit.stages:
            stream.enter(stage)
            (self.seen[unit.graph[stage.layers[0]].path],) = stream.values(stage)


@dataclass(frozen=True)
class Compiled:
    model: Path
    out: Path
    seen: dict[str, Tensor]


def registry() -> Registry:
    found = standard_registry()
    found.add(Tune)
    found.add(Watch)
    return found


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    folder = tmp_path_factory.mktemp("tuned")
    model = write_checkpoint(folder / "model", d_model=32, mlp_hidden_size=48)
    Watch.seen.clear()
    run_passes(model, folder, registry(), PASSES)
    return Compiled(model, folder / "out", dict(Watch.seen))


def test_the_loaded_model_computes_what_the_stream_computed(compiled: Compiled) -> None:
    module = qdc.load(compiled.out, backend="reference")
    read: dict[str, Tensor] = {}
    for path, leaf in module.named_modules():
        if path in compiled.seen:
            leaf.register_forward_pre_hook(lambda _, given, at=path: read.update({at: given[0]}))
    module(TOKENS)
    assert len(read) == 8, "four stages in each of two regions"
    for path, value in compiled.seen.items():
        torch.testing.assert_close(value, read[path], rtol=1e-5, atol=1e-6, msg=path)


def test_tuned_tensors_are_stored_under_the_names_that_they_replace(compiled: Compiled) -> None:
    stored, original = Checkpoint(compiled.out), Checkpoint(compiled.model)
    norm = "model.transformer.blocks.1.ff_norm.weight"
    expected = (1.0371 * original.tensor(norm).float()).bfloat16()
    assert torch.equal(stored.tensor(norm), expected)
    bias = stored.tensor(f"{Q_PROJ}.bias")
    assert torch.equal(bias, torch.linspace(-0.1, 0.1, 32).half())
    last = "model.transformer.ln_f.weight"
    assert torch.equal(stored.tensor(last), original.tensor(last)), "nobody tuned the last norm"


def test_the_configuration_names_the_added_biases(compiled: Compiled) -> None:
    settings = json.loads((compiled.out / "config.json").read_text())["quantization_config"]
    assert settings["added_biases"] == list(settings["layers"])
    module = qdc.load(compiled.out, backend="reference")
    biases = {path for path, leaf in module.named_modules() if has_bias(leaf)}
    assert biases == set(settings["layers"])
    assert not any(parameter.requires_grad for parameter in module.parameters())


def has_bias(leaf: nn.Module) -> bool:
    return isinstance(leaf, nn.Linear) and leaf.bias is not None


def test_the_text_form_shows_them_and_the_dump_keeps_them(compiled: Compiled) -> None:
    graph = read(compiled.out / "ir.qdc", standard_registry().annotations())
    text = render(graph)
    assert "@tuned     weight bf16[32]" in text
    assert "@tuned     bias f16[32]" in text
    norm, linear = "blocks.0.attn_norm", "blocks.0.q_proj"
    assert graph.require(norm, Tuned).added_bytes(graph[norm]) == 0
    assert graph.require(linear, Tuned).added_bytes(graph[linear]) == 2 * 32


def test_dumps_between_passes_show_tuned_norms(tmp_path: Path, compiled: Compiled) -> None:
    job = make_job(
        compiled.model,
        tmp_path / "out",
        registry(),
        passes=PASSES,
        dump_after=["pack", "tune"],
        stop_after="tune",
    )
    run_job(job)
    before, after = (
        (tmp_path / "out-dumps" / name).read_text() for name in ("02_pack.txt", "03_tune.txt")
    )
    assert "@tuned" not in before
    assert after.count("@tuned     weight") == 4


def test_tuned_tensors_wait_for_a_later_segment(tmp_path: Path, compiled: Compiled) -> None:
    class Wait(Pass):
        """Do nothing, with the whole model."""

        name: ClassVar[str] = "wait"
        barrier: ClassVar[bool] = True

        def run(self, unit: Unit) -> None:
            assert not list(unit.tensors.held())

    known = registry()
    known.add(Wait)
    run_passes(compiled.model, tmp_path, known, "rtn-lower{bits=4},tune,wait,pack")
    waited, direct = (
        qdc.load(tmp_path / "out", backend="reference"),
        qdc.load(compiled.out, backend="reference"),
    )
    assert torch.equal(waited(TOKENS), direct(TOKENS))


def test_a_tuned_value_that_does_not_fit_is_refused(tmp_path: Path, compiled: Compiled) -> None:
    class Overflow(Pass):
        """Add a bias beyond fp16."""

        name: ClassVar[str] = "overflow"

        def run(self, unit: Unit) -> None:
            node = unit.layers()[0]
            unit.tune(node, "bias", torch.full((node.rows,), 1e6))

    known = registry()
    known.add(Overflow)
    with pytest.raises(InvalidGraph, match="the tuned bias is not finite in f16"):
        run_passes(compiled.model, tmp_path, known, "rtn-lower,pack,overflow")


Edit = Callable[[dict[str, Any]], None]


def name_more(path: str) -> Edit:
    return lambda settings: settings["added_biases"].append(path)


def drop_first(settings: dict[str, Any]) -> None:
    settings["added_biases"].remove(Q_PROJ)


def no_list(settings: dict[str, Any]) -> None:
    settings["added_biases"] = {"a": 1}


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (name_more("model.transformer.blocks.7.q_proj"), "names no linear of the model"),
        (name_more("model.transformer.wte"), "names no linear of the model"),
        (name_more(""), "names no linear of the model"),
        (name_more(Q_PROJ), "names a linear that has a bias"),
        (name_more("model.transformer.ff_out"), "1 tensors are missing"),
        (drop_first, "1 have no place in the model"),
        (no_list, "quantization_config is not one of qdc"),
    ],
)
def test_a_hostile_configuration_is_refused(
    edit: Edit, what: str, compiled: Compiled, tmp_path: Path
) -> None:
    copy = unsealed(compiled.out, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    edit(config["quantization_config"])
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidArtifact, match=what):
        qdc.load(copy, backend="reference")


def test_a_bias_of_another_shape_is_refused(compiled: Compiled, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in compiled.out.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    shard = copy / "model-00001-of-00003.safetensors"
    tensors = load_file(shard)
    tensors[f"{Q_PROJ}.bias"] = torch.zeros(1, dtype=torch.float16)
    save_file(tensors, shard)
    with pytest.raises(InvalidArtifact, match="wrong dtype or shape") as caught:
        qdc.load(copy, backend="reference")
    assert any(f"{Q_PROJ}.bias" in place for place in caught.value.where)
