"""The peers' surroundings: the native model, the samples, the format, the way back."""

import json
import shutil
import sys
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import qdc
from bench.common.clocks import Stopwatch
from bench.common.samples import calibration_states
from bench.peers import PEERS, MissingLibrary, PeerResult, isolated
from bench.peers.__main__ import main
from bench.peers.native import names
from bench.peers.pair import dense_weights, open_pair
from bench.peers.placing import with_weights
from bench.peers.result import Grid, grid_result, load, save
from bench.peers.watch import BlockWatch
from qdc.errors import QdcError
from qdc.frontend.opening import open_model
from qdc.streaming.unit import Unit
from tests.support.checkpoints import EMBEDDED, write_checkpoint
from tests.support.compiles import run_passes, spying

LIBRARIES = {
    "autoround": "auto_round", "gptq": "llmcompressor", "hqq": "hqq", "llamacpp": "xllamacpp",
}  # fmt: skip


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
    pair = open_pair(EMBEDDED, probe)
    original, native = pair.original, pair.native
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
    pair = open_pair(folder, probe)
    with torch.no_grad():
        assert torch.allclose(pair.native(probe).logits, pair.original(probe), atol=1e-4)


def test_weights_come_back_under_our_names(probe: Tensor) -> None:
    pair = open_pair(EMBEDDED, probe)
    original = pair.original
    weights = dense_weights(pair.native, pair.paths)
    linears = {node.path for node in open_model(EMBEDDED)[1].graph.layers()}
    assert set(weights) == linears
    assert all(torch.equal(w, original.get_parameter(f"{k}.weight")) for k, w in weights.items())
    assert sorted(names(6).values()) == sorted(linears)


def test_watch_passes_what_computes_our_blocks(probe: Tensor) -> None:
    pair = open_pair(EMBEDDED, probe)
    native, watch = pair.native, BlockWatch(pair, probe)
    with torch.no_grad():
        for batch in (probe[:4], probe[4:]):
            native(batch)
    assert "within" in watch.finish()


@pytest.mark.parametrize("fault", ["causal", "order", "dtype", "unseen", "nan"])
def test_watch_refuses_another_function(probe: Tensor, fault: str) -> None:
    pair = open_pair(EMBEDDED, probe)
    native, watch = pair.native, BlockWatch(pair, probe)
    if fault == "causal":
        for layer in native.model.layers:
            layer.self_attn.is_causal = True
    if fault == "dtype":
        native.bfloat16()
    if fault == "nan":
        native.model.layers[0].self_attn.o_proj.weight.data[3, 5] = float("nan")

    def watched(tokens: Tensor) -> None:
        native(tokens)
        assert fault == "unseen"  # the others end at the first block that differs
        watch.finish()

    said = "on all samples" if fault == "unseen" else "away from ours"
    with pytest.raises(QdcError, match=said), torch.no_grad():
        watched(probe.flip(0) if fault == "order" else probe[: 3 if fault == "unseen" else None])


def test_bits_count_scale_and_zero_point() -> None:
    weights = {"a": torch.zeros(2, 128), "b": torch.zeros(4, 256)}
    assert Grid(2, 128, 2).effective_bits(weights) == 2.140625
    assert Grid(2, 64, 16).effective_bits(weights) == 2.5


def test_a_shorter_group_costs_a_whole_one_unless_it_goes_on_in_the_next_row() -> None:
    weights = {"a": torch.zeros(4, 6)}
    assert Grid(2, 4, 2).effective_bits(weights) == 2 + 18 * 2 / 6
    assert Grid(2, 4, 2, flat=True).effective_bits(weights) == 2 + 18 / 4


def test_levels_are_counted_group_by_group() -> None:
    weight = torch.tensor([[0.0, 1, 2, 3, 4, 5, 6, 7], [1, 1, 1, 1, 2, 2, 3, 3]])
    assert Grid(2, 4, 2).most_levels(weight) == 4
    assert Grid(2, 8, 2).most_levels(weight) == 8
    assert Grid(2, 3, 2).most_levels(weight) == 3
    Grid(2, 4, 2).check({"a": weight})
    with pytest.raises(QdcError, match="more than 4 levels") as caught:
        Grid(2, 8, 2).check({"a": weight})
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


@pytest.mark.slow
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
    if peer == "llamacpp":
        # Rows of 128 weights are no blocks of Q2_K, those of ff_out are one each.
        assert found.effective_bits == 4.125
        assert "IQ4_NL" in found.notes[0]
    else:
        assert found.effective_bits > found.code_bits == 2


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama of transformers with grouped heads, a tied head, and a tokenizer."""
    folder = tmp_path_factory.mktemp("causal")
    build: Any = LlamaConfig
    settings = build(
        vocab_size=2048, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(settings).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((EMBEDDED / "tokenizer.json").read_bytes())
    told = json.loads((EMBEDDED / "tokenizer_config.json").read_text(encoding="utf-8"))
    del told["mask_token"]  # with one it would be built to look both ways
    (folder / "tokenizer_config.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


@pytest.mark.parametrize("fault", ["", "both ways", "positions"])
def test_watch_knows_causal_blocks(causal: Path, fault: str) -> None:
    samples = torch.arange(96).reshape(4, 24)
    pair = open_pair(causal, samples)
    watch = BlockWatch(pair, samples)
    assert pair.causal
    if fault == "both ways":
        for layer in pair.native.model.layers:
            layer.self_attn.is_causal = False
    places = torch.arange(24)[None]
    expected = pytest.raises(QdcError, match="away from ours") if fault else nullcontext()
    with expected, torch.no_grad():
        pair.native(
            samples,
            position_ids=places.flip(1) if fault == "positions" else places,
            attention_mask=torch.zeros(4, 1, 24, 24) if fault == "both ways" else None,
        )
        assert "within" in watch.finish()


def test_what_hides_the_last_position_is_told_from_what_hides_others(causal: Path) -> None:
    samples = torch.arange(96).reshape(4, 24)
    pair = open_pair(causal, samples)
    for hidden, passes in ((-1, True), (3, False)):
        watch = BlockWatch(pair, samples, last=False)
        seen = torch.ones_like(samples)
        seen[:, hidden] = 0
        expected = nullcontext() if passes else pytest.raises(QdcError, match="away from ours")
        with expected, torch.no_grad():
            pair.native(samples, attention_mask=seen)
            watch.finish()


def test_a_llama_with_a_mask_token_is_refused(causal: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(causal, folder)
    shutil.copy(EMBEDDED / "tokenizer_config.json", folder)
    with pytest.raises(QdcError, match="another family"):
        open_pair(folder, torch.arange(8)[None])


def test_causal_weights_go_there_and_back(causal: Path) -> None:
    samples = torch.arange(32).reshape(2, 16)
    pair = open_pair(causal, samples)
    weights = dense_weights(pair.native, pair.paths)
    linears = {node.path for node in open_model(causal)[1].graph.layers()}
    assert set(weights) == linears
    with torch.no_grad():
        assert torch.equal(with_weights(causal, weights)(samples), pair.original(samples))
        halved = {name: weight / 2 for name, weight in weights.items()}
        apart = with_weights(causal, halved)(samples) - pair.original(samples)
    assert apart.abs().max() > 1e-3


@pytest.mark.slow
def test_samples_of_a_causal_model_are_those_of_a_compile(causal: Path, tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def look(label: str, unit: Unit) -> None:
        seen.append(unit.open_streams()[0, False].tokens)

    passes = "calibrate-mcs{samples=5 length=32 seed=7 geometry=clean},spy"
    run_passes(causal, tmp_path, spying(look), passes, stop_after="spy")
    found = calibration_states(causal, 7, samples=5, length=32, geometry="clean")
    assert torch.equal(found.tokens, seen[0])
    assert not found.masked.any()


def test_llama_cpp_stores_what_fits_and_falls_back_where_nothing_does() -> None:
    gguf = pytest.importorskip("gguf")
    library = pytest.importorskip("xllamacpp")
    peer = import_module("bench.peers.llamacpp_peer")
    engine = peer.open_engine(library)
    torch.manual_seed(0)
    weight = torch.randn(4, 320)
    importance = torch.ones(320)
    for columns, padded, kind, bits in (
        (256, False, "Q2_K", 2.625),
        (320, False, "IQ4_NL", 4.5),
        (320, True, "Q2_K", 2.625 * 512 / 320),
    ):
        given = weight[:, :columns]
        found = peer.there_and_back(
            engine, gguf, given, importance[:columns], "Q2_K", padded=padded
        )
        assert found.type == kind
        assert found.nbytes * 8 == bits * given.numel()
        assert found.dense.shape == given.shape
        assert 0 < (found.dense - given).square().mean() < 0.12
    ternary = peer.there_and_back(engine, gguf, weight, importance, "TQ2_0")
    assert ternary.type == "Q4_0"


def test_llama_cpp_spends_its_levels_where_importances_are() -> None:
    gguf = pytest.importorskip("gguf")
    library = pytest.importorskip("xllamacpp")
    peer = import_module("bench.peers.llamacpp_peer")
    torch.manual_seed(0)
    weight = torch.randn(8, 256)
    importance = torch.ones(256)
    importance[:32] = 100
    engine = peer.open_engine(library)
    plain, told = (
        peer.there_and_back(engine, gguf, weight, each, "Q2_K").dense - weight
        for each in (torch.ones(256), importance)
    )
    assert told[:, :32].square().sum() < plain[:, :32].square().sum()


def test_importances_are_mean_squares_of_inputs(causal: Path) -> None:
    peer = import_module("bench.peers.llamacpp_peer")
    samples = torch.arange(20 * 16).reshape(20, 16) % 2048
    pair = open_pair(causal, samples[:2])
    found = peer.mean_squares(pair.native, samples, pair.paths)
    assert set(found) == set(pair.paths.values())
    first = pair.native.model.layers[0]
    with torch.no_grad():
        read = first.input_layernorm(pair.native.model.embed_tokens(samples))
    expected = read.double().square().mean((0, 1)).float()
    assert torch.allclose(found["model.layers.0.self_attn.q_proj"], expected, rtol=1e-5)
