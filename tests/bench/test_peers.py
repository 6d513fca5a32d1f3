"""The peers' surroundings: the native model, the samples, the format, the way back."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor

import qdc
from bench.common.clocks import Stopwatch
from bench.common.samples import calibration_states
from bench.peers import PEERS, MissingLibrary, PeerResult, isolated
from bench.peers.__main__ import main
from bench.peers.native import BlockWatch, dense_weights, names, open_pair
from bench.peers.placing import with_weights
from bench.peers.result import (
    Grid,
    check_levels,
    grid_result,
    grouped_bits,
    load,
    most_levels,
    save,
)
from qdc.errors import QdcError
from qdc.frontend.opening import open_model
from qdc.streaming.unit import Unit
from tests.support.checkpoints import EMBEDDED, write_checkpoint
from tests.support.compiles import run_passes, spying

LIBRARIES = {"autoround": "auto_round", "gptq": "llmcompressor", "hqq": "hqq"}


@pytest.fixture(scope="module")
def probe() -> Tensor:
    return calibration_states(EMBEDDED, seed=3, samples=6, length=48).tokens


def test_samples_are_those_that_a_compile_calibrates_on(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def look(label: str, unit: Unit) -> None:
        seen.append(unit.open_streams()[0, False].tokens)

    passes = "calibrate-mcs{samples=5 length=32 prefix=0.5 seed=7},spy"
    run_passes(EMBEDDED, tmp_path, spying(look), passes, stop_after="spy")
    found = calibration_states(EMBEDDED, 7, samples=5, length=32, prefix=0.5).tokens
    assert torch.equal(found, seen[0])


def test_native_model_looks_both_ways_whatever_mask_it_gets(probe: Tensor) -> None:
    original, native = open_pair(EMBEDDED, probe)
    hidden = torch.ones_like(probe)
    hidden[:, -1] = 0
    with torch.no_grad():
        found = native(probe, attention_mask=hidden).logits
        assert torch.allclose(found, original(probe), atol=1e-4)
        changed = probe.clone()
        changed[:, -1] = 5
        assert not torch.allclose(native(changed).logits[:, 0], found[:, 0], atol=1e-3)


def test_native_model_with_grouped_heads_is_ours(tmp_path: Path, probe: Tensor) -> None:
    folder = write_checkpoint(tmp_path / "model", n_heads=4, n_kv_heads=2)
    original, native = open_pair(folder, probe)
    with torch.no_grad():
        assert torch.allclose(native(probe).logits, original(probe), atol=1e-4)


def test_weights_come_back_under_our_names(probe: Tensor) -> None:
    original, native = open_pair(EMBEDDED, probe)
    weights = dense_weights(native, original.sizes.blocks)
    linears = {node.path for node in open_model(EMBEDDED)[1].graph.layers()}
    assert set(weights) == linears
    assert all(torch.equal(w, original.get_parameter(f"{k}.weight")) for k, w in weights.items())
    assert sorted(names(6).values()) == sorted(linears)


def test_watch_passes_what_computes_our_blocks(probe: Tensor) -> None:
    original, native = open_pair(EMBEDDED, probe)
    watch = BlockWatch(original, native, probe)
    with torch.no_grad():
        for batch in (probe[:4], probe[4:]):
            native(batch)
    assert "within" in watch.finish()


@pytest.mark.parametrize("fault", ["causal", "order", "dtype", "unseen"])
def test_watch_refuses_another_function(probe: Tensor, fault: str) -> None:
    original, native = open_pair(EMBEDDED, probe)
    watch = BlockWatch(original, native, probe)
    if fault == "causal":
        for layer in native.model.layers:
            layer.self_attn.is_causal = True
    if fault == "dtype":
        native.bfloat16()
    with torch.no_grad():
        native(probe.flip(0) if fault == "order" else probe[: 3 if fault == "unseen" else None])
    with pytest.raises(QdcError, match="away from ours"):
        watch.finish()


def test_bits_count_scale_and_zero_point() -> None:
    assert grouped_bits(2, 128, 16, 2) == 2.140625
    assert grouped_bits(2, 64, 16, 16) == 2.5


def test_levels_are_counted_group_by_group() -> None:
    weight = torch.tensor([[0.0, 1, 2, 3, 4, 5, 6, 7], [1, 1, 1, 1, 2, 2, 3, 3]])
    assert most_levels(weight, 4) == 4
    assert most_levels(weight, 8) == 8
    check_levels({"a": weight}, 2, 4)
    with pytest.raises(QdcError, match="more than 4 levels") as caught:
        check_levels({"a": weight}, 2, 8)
    assert caught.value.where == ("a",)


@pytest.mark.parametrize(("zero", "counted"), [(2, "packed integer"), (16, "fp16")])
def test_a_grid_is_counted_and_proved(zero: int, counted: str) -> None:
    with Stopwatch() as watch:
        weights = {"a": torch.tensor([[0.0, 1, 2, 3, 4, 5, 6, 7]])}
    grid = Grid(2, 4, zero_bits=zero)
    found = grid_result("x", "1", weights, grid, watch, options={"k": 1}, notes=("first",))
    assert (found.code_bits, found.effective_bits) == (2, 2 + (16 + zero) / 4)
    assert found.seconds == watch.seconds
    assert found.notes[0] == "first"
    assert f"one {counted} zero point" in found.notes[-1]
    with pytest.raises(QdcError, match="more than 4 levels"):
        grid_result("x", "1", weights, Grid(2, 8, zero), watch, options={}, notes=())


def test_result_survives_the_disk(tmp_path: Path) -> None:
    weights = {"model.a": torch.randn(3, 4), "model.b": torch.randn(4, 3).T}
    result = PeerResult("x", "1.2", weights, 2.14, 2, 3.5, {"iters": 5}, ("counted: codes",))
    save(result, tmp_path / "run")
    found = load(tmp_path / "run")
    assert all(torch.equal(found.weights[k], w) for k, w in weights.items())
    assert {k: v for k, v in vars(found).items() if k != "weights"} == {
        k: v for k, v in vars(result).items() if k != "weights"
    }


@pytest.mark.parametrize("peer", sorted(PEERS))
def test_missing_library_says_how_to_install_it(
    peer: str, probe: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, LIBRARIES[peer], None)
    module = import_module(f"bench.peers.{PEERS[peer]}")
    with pytest.raises(MissingLibrary, match=r"pip install --no-deps \S+==") as caught:
        module.quantize(EMBEDDED, probe, 0)
    assert LIBRARIES[peer] in caught.value.what


def test_padding_is_a_token_that_no_sample_holds() -> None:
    unused = import_module("bench.peers.autoround")._unused
    assert unused(6, torch.tensor([[0, 1], [5, 3]])) == 2
    with pytest.raises(QdcError, match="every token occurs"):
        unused(3, torch.tensor([[0, 1, 2]]))


def test_command_prints_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "hqq", None)
    few = ["--samples", "2", "--length", "16"]
    assert main(["hqq", "--model", str(EMBEDDED), "--out", str(tmp_path), *few]) == 1
    assert "pip install --no-deps hqq" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_failure_in_the_other_interpreter_is_told(tmp_path: Path, probe: Tensor) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(QdcError, match=r"hqq failed under .*exit status 1"):
        isolated.quantize(Path(sys.executable), "hqq", tmp_path / "empty", probe, 0)
    with pytest.raises(QdcError, match="no peer is called 'awq'"):
        isolated.quantize(Path(sys.executable), "awq", tmp_path, probe, 0)


def test_own_weights_change_nothing_and_coarse_ones_do(probe: Tensor) -> None:
    original = qdc.load_original(EMBEDDED)
    paths = [node.path for node in open_model(EMBEDDED)[1].graph.layers()]
    weights = {path: original.get_parameter(f"{path}.weight").detach() for path in paths}
    with torch.no_grad():
        due = original(probe)
        assert torch.equal(with_weights(EMBEDDED, weights)(probe), due)
        signs = {k: w.sign() * w.abs().mean() for k, w in weights.items()}
        assert (with_weights(EMBEDDED, signs)(probe) - due).abs().max() > 0.1


def test_weight_without_a_place_is_refused() -> None:
    with pytest.raises(QdcError, match="no place") as caught:
        with_weights(EMBEDDED, {"model.nowhere": torch.ones(2, 2)})
    assert caught.value.where == ("model.nowhere",)


@pytest.mark.parametrize("peer", sorted(PEERS))
def test_library_quantizes_every_linear(peer: str, tmp_path: Path) -> None:
    pytest.importorskip(LIBRARIES[peer])
    folder = write_checkpoint(tmp_path / "model", d_model=128, mlp_hidden_size=256)
    samples = calibration_states(folder, seed=0, samples=8, length=32).tokens
    quick = {"iters": 1} if peer == "autoround" else {}
    found = isolated.quantize(Path(sys.executable), peer, folder, samples, 0, **quick)
    original = dict(qdc.load_original(folder).named_parameters())
    assert len(found.weights) == 14
    for path, weight in found.weights.items():
        dense = original[f"{path}.weight"]
        assert 0 < (weight - dense).norm() < dense.norm()
    assert found.effective_bits > found.code_bits == 2
