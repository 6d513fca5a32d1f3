"""The example quantizer, as a plugin from the plan to the logits, and each of its promises."""

import ast
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

import qdc
from qdc.cli import run
from qdc.errors import InvalidCheckpoint
from qdc.format.codec import Lowered
from qdc.ir.verify import verify
from qdc.numerics.blocks import block_slices
from qdc.numerics.error import relative_output_error
from qdc.pipeline.registry import standard_registry
from qdc.streaming.unit import Unit
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny
from tests.support.outlooks import forecast_tiny
from tests.support.units import correlated_moment, make_unit, noise, put_statistics

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugins" / "ternary_lower.py"
PASSES = "stages(calibrate-mcs,sensitivity,ternary-lower{group=24}),pack"
DEFINED = runpy.run_path(str(EXAMPLE))
CODEC, LOWER = DEFINED["TernaryCodec"], DEFINED["TernaryLower"]
GROUP = 32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Widths that fill neither the last group nor the last byte."""
    return write_checkpoint(tmp_path_factory.mktemp("ternary") / "model", d_model=36)


@pytest.fixture(scope="module")
def compiled(model: Path) -> qdc.CompileReport:
    return compile_tiny(model, model.with_name("out"), PASSES, plugins=[EXAMPLE])


def decoded(folder: Path) -> dict[str, Tensor]:
    """The weights as the docstrings of the example say, without it."""
    stored = {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    found = {}
    for path, layer in config["layers"].items():
        packed = stored[f"{path}.codes"].numpy()
        digits = np.stack([packed // 3**place % 3 for place in range(5)], axis=-1)
        codes = digits.reshape(len(packed), -1)[:, : layer["columns"]].astype(np.float32) - 1
        scale = stored[f"{path}.scale"].float().numpy().repeat(layer["group"], axis=1)
        found[f"{path}.weight"] = torch.from_numpy(codes * scale[:, : layer["columns"]])
    return found


def test_it_stays_short() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 100
    imports = [x for x in ast.parse(text).body if isinstance(x, ast.Import | ast.ImportFrom)]
    assert len(imports) <= 3


def test_the_plan_predicts_its_bytes(model: Path, compiled: qdc.CompileReport) -> None:
    outlook = forecast_tiny(model, PASSES, standard_registry([EXAMPLE]))
    assert outlook.unknown == ()
    assert outlook.tensor_bytes == compiled.tensor_bytes == compiled.predicted_bytes
    found = {f.name: f.nbytes for f in compiled.files if f.name.endswith(".safetensors")}
    assert {shard.name: shard.file_bytes for shard in outlook.shards} == found


def test_its_bits_are_code_bits(compiled: qdc.CompileReport) -> None:
    assert compiled.bits_word == "code bits"
    assert 1.6 <= compiled.sign_bits < 1.601
    for layer in compiled.layers:
        groups, codes = -(-layer.columns // 24), -(-layer.columns // 5)
        assert layer.nbytes == layer.rows * (codes + 2 * groups)
        assert layer.codec == "ternary"
        assert layer.error is not None
        assert 0 < layer.error < 0.3


def test_the_logits_are_those_of_the_decoded_weights(
    model: Path, compiled: qdc.CompileReport
) -> None:
    assert compiled.out is not None
    weights = decoded(Path(compiled.out))
    assert len(weights) == len(compiled.layers)
    plain = qdc.load_original(model)
    with torch.no_grad():
        for name, weight in weights.items():
            plain.get_parameter(name).copy_(weight)
    loaded = qdc.load(compiled.out, plugins=[EXAMPLE], backend="reference")
    tokens = torch.arange(48).reshape(2, 24)
    assert torch.equal(loaded(tokens), plain(tokens))


def test_it_runs_by_the_commands(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def qdc(*arguments: object) -> str:
        code = run([str(word) for word in arguments])
        out, error = capsys.readouterr()
        assert code == 0, error
        return out

    given = ("--plugin", EXAMPLE, "--passes", PASSES, "--samples", 4, "--length", 16)
    assert "code bits       " in qdc("compile", model, "-o", tmp_path / "out", *given)
    planned = json.loads(qdc("plan", model, *given, "--json"))
    shards = {shard["name"]: shard["file_bytes"] for shard in planned["shards"]}
    assert shards == {p.name: p.stat().st_size for p in (tmp_path / "out").glob("*.safetensors")}
    shown = qdc("show", tmp_path / "out", "--only", "*.q_proj", "--plugin", EXAMPLE)
    assert "@ternary   1.6 bits   output error " in shown


def lowered(weight: Tensor, moment: Tensor, **options: object) -> tuple[Unit, Tensor, Tensor]:
    """The unit after the pass; the layer written out; the scale of each weight."""
    unit = make_unit(LOWER.model_validate({"group": GROUP, **options}), {"q": weight})
    put_statistics(unit, moment, (2,) * len(block_slices(weight.shape[1])))
    unit.step.run(unit)
    verify(unit.graph, unit.tensors, after="ternary-lower")
    note = unit.graph.require("q", Lowered)
    working = note.working(unit.tensors)
    scale = working["scale"].float().repeat_interleave(GROUP, 1)[:, : weight.shape[1]]
    return unit, note.codec.dense(working), scale


@pytest.mark.parametrize("seed", range(3))
def test_it_beats_rounding_to_its_grid(seed: int) -> None:
    """The same levels, each weight on the nearest: what error feedback is there for."""
    weight, moment = noise(24, 144, seed), correlated_moment(144, seed)
    for rounds in (0, 2):
        unit, dense, scale = lowered(weight, moment, rounds=rounds)
        rounded = torch.where(weight.abs() > scale / 2, weight.sign() * scale, 0.0)
        error, plain = (relative_output_error(weight, x, moment) for x in (dense, rounded))
        assert error < 0.5 * plain
        assert unit.graph.require("q", Lowered).error == pytest.approx(error)


def test_refitted_scales_are_better_and_absmean_is_the_start() -> None:
    weight, moment = noise(24, 128), correlated_moment(128)
    (_, first, scale), (_, refitted, _) = (lowered(weight, moment, rounds=n) for n in (0, 4))
    absmean = weight[:, :GROUP].abs().mean(dim=1).half().float()
    assert torch.equal(scale[:, 0], absmean)
    assert relative_output_error(weight, refitted, moment) < 0.9 * relative_output_error(
        weight, first, moment
    )


def test_rows_and_layers_of_zeros_stay_zero() -> None:
    weight = noise(4, 64)
    weight[1] = 0
    _, dense, _ = lowered(weight, correlated_moment(64))
    assert not dense[1].any()
    assert not lowered(torch.zeros(4, 64), correlated_moment(64))[1].any()


def test_weights_beyond_fp16_are_refused_by_name() -> None:
    with pytest.raises(InvalidCheckpoint, match="scale is not finite in float16") as caught:
        lowered(1e7 * noise(4, 64), correlated_moment(64))
    assert caught.value.where == ("%q",)


@given(st.integers(1, 9), st.integers(1, 70), st.integers(1, 80), st.integers(0, 2**31))
def test_packing_is_exact(rows: int, columns: int, group: int, seed: int) -> None:
    codec = CODEC(rows=rows, columns=columns, group=group)
    generator = torch.Generator().manual_seed(seed)
    groups = -(-columns // group)
    working = {
        "codes": torch.randint(-1, 2, (rows, columns), generator=generator).to(torch.int8),
        "scale": torch.rand(rows, groups, generator=generator).half(),
    }
    stored = codec.pack_exactly(working, "q")
    assert sum(tensor.nbytes for tensor in stored.values()) == codec.nbytes
    back = codec.unpack(stored)
    assert all(torch.equal(back[suffix], tensor) for suffix, tensor in working.items())
    assert 8 * stored["codes"].numel() >= codec.payload_bits >= 1.6 * rows * columns - 1
