"""What running an artifact takes: forecast from headers, held against a process that does it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import qdc
from qdc.artifact.writer import DUMP
from qdc.backends.cpu.modules import PackedLinear
from qdc.errors import InvalidArtifact, QdcError
from qdc.pipeline.registry import standard_registry
from qdc.planning.options import ForecastOptions
from qdc.planning.outlook import RuntimeMemory
from qdc.planning.running import foresee_running
from tests.support import llada8b
from tests.support.checkpoints import VOCABULARY, write_checkpoint
from tests.support.commands import environment
from tests.support.commands import qdc as command
from tests.support.compiles import compile_tiny
from tests.support.outlooks import forecast_tiny

MEASURE = """
import json, sys, torch, qdc
model = qdc.load(sys.argv[1], backend=sys.argv[3])
with torch.inference_mode():
    model(torch.ones(1, int(sys.argv[2]), dtype=torch.int64))
lines = open("/proc/self/status").read().splitlines()
print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("running")
    model = write_checkpoint(folder / "m", d_model=64, mlp_hidden_size=128)
    compile_tiny(model, folder / "out", "quantize-vocab,rtn-lower,pack")
    return folder / "out"


def running(artifact: Path, backend: str = "reference", **given: object) -> RuntimeMemory:
    """What a runtime needs."""
    options = ForecastOptions.parse(model_dir=artifact, **given)
    found = foresee_running(options, standard_registry())
    return next(each for each in found.runtimes if each.backend == backend)


def test_dense_runtime_holds_every_weight_in_fp32(artifact: Path) -> None:
    module = qdc.load(artifact, backend="reference")
    found = running(artifact, length=16)
    assert found.parts["dense weights"] == sum(4 * p.numel() for p in module.parameters())
    logits = 4 * 16 * VOCABULARY
    assert logits < found.parts["activations"] < 2 * logits
    assert found.peak_bytes >= found.running_bytes > found.process_bytes > 1e8


def test_tensors_are_counted_without_the_headers_of_their_files(artifact: Path) -> None:
    found = foresee_running(ForecastOptions.parse(model_dir=artifact), standard_registry())
    index = json.loads((artifact / "model.safetensors.index.json").read_text())
    assert found.tensor_bytes == index["metadata"]["total_size"]


def test_packed_runtime_holds_what_is_stored(artifact: Path) -> None:
    pytest.importorskip("llvmlite")
    module, found = qdc.load(artifact, backend="cpu"), running(artifact, "cpu", length=16)
    packed = [part for part in module.modules() if isinstance(part, PackedLinear)]
    buffers = [dict(part.named_buffers(recurse=False)) for part in packed]
    codes = sum(held["bits"].nbytes for held in buffers)
    assert found.parts["planes and codes"] == codes
    others = sum(t.nbytes for held in buffers for t in held.values()) - codes
    assert found.parts["scales"] == others
    assert found.parts["other weights"] == sum(4 * p.numel() for p in module.parameters())


def test_of_a_model_it_is_that_of_the_artifact_to_come(artifact: Path) -> None:
    outlook = forecast_tiny(
        artifact.with_name("m"), "quantize-vocab,rtn-lower,pack", length=None, samples=None
    )
    [mine] = (each for each in outlook.running if each.backend == "reference")
    found = running(artifact)
    assert outlook.tokens == 64
    assert (mine.parts, mine.loading_bytes) == (found.parts, found.loading_bytes)


def test_llada_8b_is_answered_from_headers(tmp_path: Path) -> None:
    llada8b.write(tmp_path)
    outlook = forecast_tiny(tmp_path, "data-free")
    [found] = (each for each in outlook.running if each.backend == "reference")
    assert outlook.tokens == 512
    assert found.parts["dense weights"] == 4 * 8_015_581_184
    assert 4 * 512 * 126_464 < found.parts["activations"] < 300e6
    pytest.importorskip("llvmlite")
    [packed] = (each for each in outlook.running if each.backend == "cpu")
    # This process may hold what other tests left in it: a fresh one is below 0.6 GB.
    assert packed.peak_bytes - packed.process_bytes + 0.6e9 < 8e9


def test_options_of_a_compile_are_refused(artifact: Path) -> None:
    with pytest.raises(QdcError, match="--effort, --samples changes nothing"):
        running(artifact, effort="low", samples=3)
    with pytest.raises(QdcError, match="--length 65 is beyond the model's 64 tokens"):
        running(artifact, length=65)


def test_an_artifact_without_its_dump_is_refused(artifact: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(artifact, tmp_path / "copy")
    (copy / DUMP).unlink()
    with pytest.raises(InvalidArtifact, match="there is no IR dump") as caught:
        running(copy)
    assert caught.value.help


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_forecast_is_near_to_what_a_process_takes(backend: str, tmp_path: Path) -> None:
    """What the C library holds back of freed memory is left out: see docs/planning.md."""
    model = write_checkpoint(
        tmp_path / "m", d_model=1024, mlp_hidden_size=2816, n_heads=16, n_layers=6, max_length=512
    )
    compile_tiny(model, tmp_path / "out", "rtn-lower,pack")
    script: list[str | Path] = [sys.executable, "-c", MEASURE, tmp_path / "out", "512", backend]
    kept = environment() | {"MALLOC_TRIM_THRESHOLD_": "1000000"}
    measured = json.loads(subprocess.check_output(script, env=kept, text=True))
    planned = json.loads(command("plan", tmp_path / "out", "--json").stdout)
    [found] = (each for each in planned["runtimes"] if each["backend"] == backend)
    assert found["peak_bytes"] == pytest.approx(measured, rel=0.1)
