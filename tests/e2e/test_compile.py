"""Whole compiles: repeatable, atomic, and honest about bad weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import qdc
from qdc.errors import (
    InvalidCheckpoint,
    NotPositiveDefinite,
    OrderOutOfRange,
    OutputExists,
    QdcError,
)
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny, pipeline_text, run_passes, spying

Q_PROJ = "model.transformer.blocks.0.q_proj.weight"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("e2e") / "model"
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=160, dtype=torch.float32)


@pytest.fixture(scope="module")
def artifact(model: Path) -> Path:
    out = model.with_name("out")
    compile_tiny(model, out)
    return out


def test_a_second_compile_is_byte_identical(model: Path, artifact: Path, tmp_path: Path) -> None:
    compile_tiny(model, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(artifact)


def test_neither_the_models_name_nor_the_working_folder_matters(
    model: Path, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    moved = Path("other name")
    moved.symlink_to(model)
    compile_tiny(moved, Path("deep") / "out")
    assert contents(tmp_path / "deep" / "out") == contents(artifact)


def test_another_seed_gives_another_artifact(model: Path, artifact: Path, tmp_path: Path) -> None:
    compile_tiny(model, tmp_path / "out", seed=1)
    one, two = contents(artifact), contents(tmp_path / "out")
    differing = {name for name in one if one[name] != two[name]}
    assert differing >= {"model-00001-of-00003.safetensors", "config.json", "ir.qdc"}
    assert "model-00003-of-00003.safetensors" not in differing


@pytest.mark.parametrize(
    "passes",
    [
        "uniform",
        "rtn",
        "data-free",
        "calibrate-mcs,sensitivity,abmp-allocate,daq-lower,pack",
        "stages(calibrate-mcs,sensitivity,abmp-allocate{base=3 ratio=0.5 scope=layer},daq-lower"
        "{compensation=diag}),pack",
        "rtn-lower{bits=8 group=64},pack",
    ],
)
def test_every_pipeline_gives_an_artifact_that_loads(
    passes: str, model: Path, tmp_path: Path
) -> None:
    calibrated = "calibrate" in pipeline_text(passes)
    # feedback follows its samples closely: few tokens would show their noise
    options = {"samples": 64} if calibrated else {}
    report = compile_tiny(model, tmp_path / "out", passes, **options)
    tokens = torch.tensor([[5, 6, 7, 8]])
    logits = qdc.load(tmp_path / "out", backend="reference")(tokens)
    exact = qdc.load_original(model)(tokens)
    assert logits.shape == exact.shape
    error = float((logits - exact).square().mean() / exact.square().mean())
    assert 0 < error < (0.01 if "bits=8" in passes else 1.5)
    assert (report.calibration is None) == ("calibrate" not in report.pipeline)
    measured = {layer.error is None for layer in report.layers}
    assert measured == {report.calibration is None}


def test_an_existing_artifact_is_replaced_with_force_alone(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compile_tiny(model, out, "rtn-lower,pack")
    before = contents(out)
    with pytest.raises(OutputExists):
        compile_tiny(model, out, "rtn-lower{bits=4},pack")
    assert contents(out) == before
    compile_tiny(model, out, "rtn-lower{bits=4},pack", force=True)
    assert contents(out) != before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("region", "left"), [("blocks.0", []), ("blocks.1", [".out.partial"])])
def test_a_failed_compile_leaves_the_old_artifact_and_what_can_be_gone_on_from(
    region: str, left: list[str], model: Path, tmp_path: Path
) -> None:
    def fail(label: str, unit: qdc.Unit) -> None:
        if unit.name == region:
            raise InvalidCheckpoint("too bad")

    out = tmp_path / "out"
    compile_tiny(model, out, "rtn-lower,pack")
    before = contents(out)
    with pytest.raises(InvalidCheckpoint, match="too bad"):
        run_passes(model, tmp_path, spying(fail), "rtn-lower,pack,spy", force=True)
    assert contents(out) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [*left, "out"]


def test_an_interrupt_leaves_no_folder(model: Path, tmp_path: Path) -> None:
    def interrupt(label: str, unit: qdc.Unit) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_passes(model, tmp_path, spying(interrupt), "rtn-lower,pack,spy")
    assert list(tmp_path.iterdir()) == []


def test_unmet_needs_are_found_before_the_model_is_read(tmp_path: Path) -> None:
    with pytest.raises(QdcError, match="unmet needs"):
        compile_tiny(tmp_path / "no model", tmp_path / "out", "daq-lower,pack")
    with pytest.raises(QdcError, match="backend reference reads @packed"):
        compile_tiny(tmp_path / "no model", tmp_path / "out", "rtn-lower")


def broken(tmp_path: Path, edit: Callable[[dict[str, Tensor]], None]) -> Path:
    return write_checkpoint(
        tmp_path / "broken", d_model=32, mlp_hidden_size=48, dtype=torch.float32, edit=edit
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("passes", ["default", "data-free"])
def test_weights_that_are_no_numbers_are_all_named(
    value: float, passes: str, tmp_path: Path
) -> None:
    other = "model.transformer.wte.weight"

    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[Q_PROJ][3, 4] = tensors[other][0, 0] = value

    with pytest.raises(InvalidCheckpoint, match="2 tensors hold NaN or infinity") as caught:
        compile_tiny(broken(tmp_path, edit), tmp_path / "out", passes)
    assert caught.value.where == (Q_PROJ, other)
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]


@pytest.mark.parametrize(
    ("factor", "passes", "what"),
    [
        (1e7, "default", "do not fit fp16 scales"),
        (1e7, "data-free", "do not fit fp16 scales"),
        (1e-9, "default", "so that weights decode to zero"),
        (1e-9, "data-free", "so that weights decode to zero"),
        (1e25, "default", "the importance of the weights overflows fp32"),
    ],
)
def test_weights_beyond_fp16_are_named(
    factor: float, passes: str, what: str, tmp_path: Path
) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[Q_PROJ] *= factor

    with pytest.raises(QdcError) as caught:
        compile_tiny(broken(tmp_path, edit), tmp_path / "out", passes)
    assert what in caught.value.what
    assert caught.value.where == ("%blocks.0.q_proj",)
    left = [".out.partial"] if passes == "default" else []  # its first step is the vocabulary
    assert sorted(p.name for p in tmp_path.iterdir()) == [*left, "broken"]


def test_a_moment_that_nothing_saves_names_the_stage(tmp_path: Path) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors["model.transformer.blocks.0.attn_norm.weight"] *= 1e25

    with pytest.raises(NotPositiveDefinite) as caught:
        compile_tiny(broken(tmp_path, edit), tmp_path / "out")
    assert caught.value.where == tuple(f"%blocks.0.{x}_proj" for x in "qkv")


def test_a_dead_model_still_compiles(tmp_path: Path) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors["model.transformer.blocks.0.attn_norm.weight"].zero_()
        tensors["model.transformer.blocks.1.ff_norm.weight"][:5] = 0
        tensors[Q_PROJ].zero_()

    report = compile_tiny(broken(tmp_path, edit), tmp_path / "out")
    dead = [line for line in report.remarks if "dead=" in line and "dead=0" not in line]
    assert any("%blocks.0.k_proj" in line and "dead=32" in line for line in dead)
    assert any("%blocks.1.up_proj" in line and "dead=5" in line for line in dead)
    assert qdc.load(tmp_path / "out", backend="reference")(torch.tensor([[1, 2]])).isfinite().all()


def test_orders_out_of_range_are_found_before_any_forward(model: Path, tmp_path: Path) -> None:
    passes = "stages(calibrate-mcs,sensitivity,abmp-allocate{base=4},daq-lower),pack"
    done: list[str] = []
    with pytest.raises(OrderOutOfRange, match=r"needs orders 3..5, outside 1..4") as caught:
        compile_tiny(
            model, tmp_path / "out", passes, progress=lambda what, n, total: done.append(what)
        )
    assert len(caught.value.where) == 14
    assert done == []


def test_progress_reaches_its_total(model: Path, tmp_path: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}

    def note(what: str, done: int, total: int) -> None:
        seen.setdefault(what, []).append((done, total))

    compile_tiny(model, tmp_path / "out", "stages(calibrate-mcs,rtn-lower),pack", progress=note)
    assert set(seen) == {"read the checkpoint", "run the passes"}
    for steps in seen.values():
        assert [done for done, _ in steps] == list(range(1, steps[-1][1] + 1))
    assert seen["run the passes"][-1] == (2 * 4 * 2 + 2, 2 * 4 * 2 + 2)


def test_a_ragged_layer_keeps_two_sign_bits_exactly(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", d_model=544, mlp_hidden_size=48, n_layers=1)
    report = compile_tiny(
        model,
        tmp_path / "out",
        "stages(calibrate-mcs,sensitivity,abmp-allocate{ratio=0.5},daq-lower{sweeps=1}),pack",
    )
    by_name = {layer.name: layer for layer in report.layers}
    assert sorted(by_name["blocks.0.q_proj"].orders[:4]) == [1, 1, 3, 3]
    assert by_name["blocks.0.q_proj"].orders[4] == 2
    assert all(layer.payload_bits == 2 * layer.weights for layer in report.layers)
    assert (report.sign_bits.numerator, report.sign_bits.denominator) == (2, 1)
