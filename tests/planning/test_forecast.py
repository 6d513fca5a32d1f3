"""Plans of folders without shards, of passes that forecast nothing, and their warnings."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from qdc.checkpoint.folder import Checkpoint
from qdc.checkpoint.layout import INDEX, SINGLE
from qdc.compiling.compiler import run_job
from qdc.errors import InvalidCheckpoint, QdcError
from qdc.ir.annotations import Kept, Orders
from qdc.passes.daq_lower import DaqLower
from qdc.pipeline.passbase import Kinds, Pass
from qdc.pipeline.registry import standard_registry
from qdc.streaming.forecast import Forecast
from qdc.streaming.unit import Unit
from tests.support import llada8b
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import PLAIN, make_job
from tests.support.outlooks import forecast_tiny


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaDA-8B without its weights."""
    folder = tmp_path_factory.mktemp("llada") / "llada-8b"
    llada8b.write(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "m", d_model=64, mlp_hidden_size=128)


def test_llada_8b_is_planned_from_two_small_files(headers: Path) -> None:
    outlook = forecast_tiny(headers, "default")
    assert len(llada8b.shapes()) == 291 == len(outlook.coverage)
    assert outlook.bytes_before == 16_031_162_368
    assert (outlook.layers, outlook.weights) == (224, 6_979_321_856)
    assert outlook.blocks == 4_608
    assert [(kind.regions, len(kind.stages)) for kind in outlook.regions] == [(32, 4)]
    assert len(outlook.shards) == 33
    # Sign planes 2 bits a weight, row and column scales of a byte, two fp16 peaks a plane, orders;
    # the vocabulary 8 bits a weight, a scale and a minimum a row; norms as they are.
    planes = 4_608 * 2
    rows = 32 * (5 * 4096 * 16 + 2 * 12288 * 16 - 4096 * 16 + 4096 * 48)
    signs = 6_979_321_856 // 4 + 2 * rows + (256 + 4) * planes + 4_608
    vocabulary = 2 * (126_464 * 4096 + 4 * 126_464)
    assert outlook.tensor_bytes == signs + vocabulary + 2 * 65 * 4096
    assert any("no tokenizer.json" in warning for warning in outlook.warnings)


def edit(folder: Path, name: str, **changes: Any) -> Path:
    data = json.loads((folder / name).read_text(encoding="utf-8"))
    data.update(changes)
    (folder / name).write_text(json.dumps(data), encoding="utf-8")
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The configuration and the index of a tiny model, no shard."""
    folder = write_checkpoint(tmp_path / "m", shards=2)
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    return folder


def test_shapes_and_dtypes_follow_without_shards(small: Path, tmp_path: Path) -> None:
    whole = write_checkpoint(tmp_path / "whole")
    found, wanted = (forecast_tiny(folder, "rtn") for folder in (small, whole))
    assert found.shards == wanted.shards
    assert "no shard is here" in found.assumed
    assert wanted.assumed == ""


def test_a_total_of_another_model_is_refused(small: Path) -> None:
    edit(small, INDEX, metadata={"total_size": 12345})
    with pytest.raises(InvalidCheckpoint, match="the index counts 12,345 bytes"):
        forecast_tiny(small, "rtn")


@pytest.mark.parametrize(
    ("change", "what"),
    [({"n_layers": 3}, "lacks 9 tensors"), ({"n_layers": 1}, "9 tensors are unmapped")],
    ids=str,
)
def test_coverage_is_checked_by_name(small: Path, change: dict[str, int], what: str) -> None:
    edit(small, "config.json", **change)
    edit(small, INDEX, metadata={})
    with pytest.raises(InvalidCheckpoint, match=what):
        forecast_tiny(small, "rtn")


@pytest.mark.parametrize(("named", "width"), [("float32", 4), ("torch.float16", 2), ("odd", 2)])
def test_the_configuration_names_the_dtype(small: Path, named: str, width: int) -> None:
    before = forecast_tiny(small, "rtn").bytes_before
    edit(small, INDEX, metadata={})
    edit(small, "config.json", torch_dtype=named)
    assert forecast_tiny(small, "rtn").bytes_before == before * width // 2


def test_some_missing_shards_are_an_error(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", shards=2)
    next(folder.glob("*-00002-*")).unlink()
    with pytest.raises(InvalidCheckpoint, match="shards that are missing"):
        forecast_tiny(folder, "rtn")
    (folder / INDEX).unlink()
    with pytest.raises(InvalidCheckpoint, match=f"neither {SINGLE}"):
        forecast_tiny(folder, "rtn")


def test_no_weight_is_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: Checkpoint, name: str) -> None:
        raise AssertionError(name)

    monkeypatch.setattr(Checkpoint, "tensor", read)
    assert forecast_tiny(model, "default").weights > 0


class Silent(Pass):
    """Changes nothing that is stored, but who knows."""

    name: ClassVar[str] = "silent"

    def run(self, unit: Unit) -> None: ...


class Secret(DaqLower):
    """A quantizer that does not say what it stores."""

    name: ClassVar[str] = "secret"

    def forecast_codec(self, unit: Forecast, node: Any) -> None:
        return None


class KeepValues(Pass):
    """Keeps a layer of each region, and says so."""

    name: ClassVar[str] = "keep-values"

    def run(self, unit: Unit) -> None:
        for node in unit.layers():
            if node.name.endswith("v_proj"):
                unit.annotate(node, Kept(reason="a value"))

    def forecast(self, unit: Forecast) -> None:
        for node in unit.layers():
            if node.name.endswith("v_proj"):
                unit.annotate(node, Kept(reason="a value"))


class Guess(Pass):
    """Orders that nobody foresees."""

    name: ClassVar[str] = "guess"
    provides: ClassVar[Kinds] = (Orders,)


@pytest.mark.parametrize(
    ("passes", "unknown"),
    [
        (PLAIN.replace("daq-lower", "silent,daq-lower"), ("silent",)),
        (PLAIN.replace("daq-lower", "secret"), ()),
        (PLAIN.replace("abmp-allocate", "guess"), ("guess",)),
    ],
    ids=["annotations", "quantizer", "orders"],
)
def test_what_is_not_known_is_no_number(passes: str, unknown: tuple[str, ...], model: Path) -> None:
    registry = standard_registry()
    for kind in (Silent, Secret, Guess):
        registry.add(kind)
    outlook = forecast_tiny(model, passes, registry)
    assert outlook.unknown == unknown
    assert outlook.shards == ()
    assert all(kind.nbytes is None for kind in outlook.kinds)


def test_layers_that_a_pass_keeps_are_stored_as_they_are(model: Path, tmp_path: Path) -> None:
    registry = standard_registry()
    registry.add(KeepValues)
    outlook = forecast_tiny(model, "keep-values,rtn-lower,pack", registry)
    report = run_job(
        make_job(model, tmp_path / "out", registry, passes="keep-values,rtn-lower,pack")
    )
    assert outlook.tensor_bytes == report.tensor_bytes
    assert outlook.layers == len(report.layers) == 12


def test_ragged_blocks_and_few_tokens_are_warned_of(tmp_path: Path) -> None:
    ragged = forecast_tiny(write_checkpoint(tmp_path / "m"), "release").warnings
    assert any("14 layers end in a ragged block" in warning for warning in ragged)
    assert any("320 inputs, and 64 tokens calibrate it" in warning for warning in ragged)
    whole = write_checkpoint(tmp_path / "w", d_model=128, mlp_hidden_size=256)
    assert not any("ragged" in warning for warning in forecast_tiny(whole, "release").warnings)
    assert forecast_tiny(whole, "data-free").warnings == ()


def test_text_that_a_compile_would_refuse_is_warned_of(model: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("for i in x", encoding="utf-8")
    (warning,) = (w for w in forecast_tiny(model, "rtn", calibration=short).warnings if "text" in w)
    assert "the calibration text will be refused: found 1 documents" in warning
    with pytest.raises(QdcError, match=r"gone\.txt"):
        forecast_tiny(model, "rtn", calibration=tmp_path / "gone.txt")


def test_states_beyond_a_limit_wait_on_the_disk(model: Path) -> None:
    free, bound = (forecast_tiny(model, "release", host_memory=limit) for limit in (None, 1000))
    states = free.host.parts.get("calibration states", 0)
    assert bound.host.parts.get("calibration states", 0) <= 1000
    assert bound.scratch_bytes - free.scratch_bytes >= states - 1000


def test_memory_does_not_grow_with_depth(headers: Path, tmp_path: Path) -> None:
    """But the vocabulary and the states, nothing but one region is held."""
    shallow = tmp_path / "shallow"
    shallow.mkdir()
    config = {**llada8b.CONFIG, "n_layers": 2}
    (shallow / "config.json").write_text(json.dumps(config), encoding="utf-8")
    names = [n for n in llada8b.shapes() if n.split(".")[3] in "01weight"]
    index = {"weight_map": dict.fromkeys(names, "a.safetensors")}
    (shallow / INDEX).write_text(json.dumps(index), encoding="utf-8")
    deep, flat = (forecast_tiny(folder, "default") for folder in (headers, shallow))
    assert deep.host.nbytes - deep.process_bytes == flat.host.nbytes - flat.process_bytes
    assert deep.host.nbytes < 12 << 30
