"""The files of a compile have the sizes that the plan predicted, to the byte."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

import qdc
from qdc.artifact.writer import DUMP
from qdc.ir.tensors import torch_dtype
from qdc.ir.types import ValueType
from qdc.planning.storage import PLACES, header_bytes
from tests.support.checkpoints import EMBEDDED, write_checkpoint
from tests.support.compiles import compile_tiny
from tests.support.outlooks import forecast_tiny

SHORT_BEST = (
    "quantize-vocab,calibrate-mcs,sensitivity,measure-orders{scale-bits=8 sweeps=1},"
    "probe-loss,allocate{scope=model weights=loss},stages(calibrate-cross,sensitivity,"
    "daq-lower{scale-bits=8 asymmetry=1 sweeps=1}),polish{iterations=2},pack"
)
"""Every pass of the preset, with less work in each."""
EXACT = ("default", "release", "gptq", "rtn", "data-free", "quantize-vocab{bits=4},rtn")


RATES = (
    "calibrate-mcs,sensitivity,predict-error,allocate-rates{weights=energy%s},"
    "stages(calibrate-mcs,sensitivity,trellis-lower{window=8 bits=allocated}),pack"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ragged blocks, two shards in, three files out."""
    return write_checkpoint(tmp_path_factory.mktemp("sizes") / "m", shards=2)


def files(report: qdc.CompileReport) -> dict[str, int]:
    return {f.name: f.nbytes for f in report.files if f.name.endswith(".safetensors")}


@pytest.mark.parametrize("passes", EXACT)
def test_every_file_is_as_large_as_predicted(passes: str, model: Path, tmp_path: Path) -> None:
    outlook = forecast_tiny(model, passes)
    report = compile_tiny(model, tmp_path / "out", passes)
    assert {shard.name: shard.file_bytes for shard in outlook.shards} == files(report)
    exact = {file.name: file.nbytes for file in outlook.beside if file.name != DUMP}
    written = {file.name: file.nbytes for file in report.files}
    assert written.items() >= exact.items()
    assert written.keys() == {shard.name for shard in outlook.shards} | {*exact, DUMP}
    [dump] = [file.nbytes for file in outlook.beside if file.name == DUMP]
    assert dump == pytest.approx(written[DUMP], rel=0.15)
    assert outlook.tensor_bytes == report.tensor_bytes == report.predicted_bytes
    assert (outlook.fewer, outlook.more) == (0, 0)
    assert outlook.unknown == ()
    assert outlook.forwards == pytest.approx(report.layer_forwards)
    assert outlook.bytes_before == report.bytes_before
    assert [row.status for row in outlook.coverage] == [row.status for row in report.coverage]


@pytest.mark.parametrize(
    "passes",
    [
        SHORT_BEST,
        RATES % "",
        pytest.param(RATES % " budget=3 count=layers", marks=pytest.mark.slow),
    ],
)
def test_what_the_whole_model_shares_gives_a_range(
    passes: str, model: Path, tmp_path: Path
) -> None:
    outlook = forecast_tiny(model, passes)
    report = compile_tiny(model, tmp_path / "out", passes)
    lowest, highest = (
        outlook.tensor_bytes - outlook.fewer,
        outlook.tensor_bytes + outlook.more,
    )
    assert lowest <= report.tensor_bytes <= highest
    assert highest - lowest < 0.15 * report.tensor_bytes
    assert outlook.forwards == pytest.approx(report.layer_forwards, rel=0.1)


def test_the_embedded_model(tmp_path: Path) -> None:
    outlook = forecast_tiny(EMBEDDED, "rtn")
    report = compile_tiny(EMBEDDED, tmp_path / "out", "rtn")
    assert {shard.name: shard.file_bytes for shard in outlook.shards} == files(report)


@given(
    st.dictionaries(
        st.text("ab.é_", min_size=1, max_size=12),
        st.tuples(st.sampled_from(PLACES), st.lists(st.integers(0, 11), max_size=3)),
        min_size=1,
        max_size=8,
    )
)
def test_headers_are_as_long_as_the_library_writes_them(
    tensors: dict[str, tuple[str, list[int]]],
) -> None:
    kinds = {
        name: ValueType(dtype=dtype, shape=tuple(shape)) for name, (dtype, shape) in tensors.items()
    }
    written = save(
        {n: torch.zeros(s, dtype=torch_dtype(d)) for n, (d, s) in tensors.items()},
        metadata={"format": "pt"},
    )
    assert header_bytes(kinds) == int.from_bytes(written[:8], "little")
