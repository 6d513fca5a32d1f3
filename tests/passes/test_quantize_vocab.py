"""quantize-vocab: what it stores, that calibration and loading see it, what it leaves alone."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import qdc
from qdc.checkpoint.folder import Checkpoint
from qdc.errors import InvalidCheckpoint, InvalidGraph, InvalidPipeline, QdcError, UnsupportedModel
from qdc.ir.annotations import TIED, Kept, Packed
from qdc.ir.dump import read
from qdc.ir.graph import LayerGraph, Node
from qdc.ir.types import Parameter
from qdc.numerics.uniform import fit_uniform
from qdc.passes import quantize_vocab
from qdc.passes.quantize_vocab import QuantizeVocab, Vocabulary
from qdc.passkit import vocabulary_lowering
from qdc.pipeline.builder import build_plan
from qdc.pipeline.passbase import Pass
from qdc.pipeline.plan import check_order
from qdc.pipeline.registry import Registry, standard_registry
from qdc.streaming.unit import Unit
from tests.support.artifacts import unsealed
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny, make_job, run_passes, spying
from tests.support.families import CASES, write_family
from tests.support.graphs import function, linear, source, structure

WTE, HEAD = "model.transformer.wte", "model.transformer.ff_out"
TOKENS = torch.tensor([[5, 6, 7, 8], [9, 10, 1, 1]])
PLAIN = "rtn-lower,pack"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocab") / "model"
    return write_checkpoint(folder, d_model=24, mlp_hidden_size=48)


@pytest.fixture(scope="module")
def artifact(model: Path) -> Path:
    out = model.with_name("out")
    compile_tiny(model, out, f"quantize-vocab,{PLAIN}")
    return out


def settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return found


def rounded(weight: Tensor, bits: int, group: int) -> Tensor:
    """The definition, written out: each group of a row on its own min-max grid."""
    parts = []
    for start in range(0, weight.shape[1], group):
        part = weight[:, start : start + group]
        low, high = part.amin(1, keepdim=True), part.amax(1, keepdim=True)
        scale = ((high - low) / (2**bits - 1)).half().float()
        minimum = low.half().float()
        codes = ((part - minimum) / scale).round().clamp(0, 2**bits - 1)
        parts.append(scale * codes + minimum)
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize(
    ("options", "bits", "group"),
    [("", 8, 24), ("{bits=4}", 4, 24), ("{bits=4 group=8}", 4, 8), ("{group=16}", 8, 16)],
)
def test_the_loaded_matrices_are_the_rounded_ones(
    options: str, bits: int, group: int, model: Path, tmp_path: Path
) -> None:
    compile_tiny(model, tmp_path / "out", f"quantize-vocab{options},{PLAIN}")
    original, loaded = (
        Checkpoint(model),
        qdc.load(tmp_path / "out", backend="reference").state_dict(),
    )
    for path in (WTE, HEAD):
        expected = rounded(original.tensor(f"{path}.weight").float(), bits, group)
        assert torch.equal(loaded[f"{path}.weight"], expected)
        entry = settings(tmp_path / "out")["layers"][path]
        assert entry == {
            "codec": "uniform", "rows": 2048, "columns": 24, "group": group, "bits": bits
        }  # fmt: skip


def test_the_artifact_says_that_the_vocabulary_is_quantized(artifact: Path) -> None:
    found, stored = settings(artifact), Checkpoint(artifact)
    assert found["modules_to_not_convert"] == []
    assert {f"{WTE}.weight", f"{HEAD}.weight"}.isdisjoint(stored.headers)
    assert stored.headers[f"{WTE}.codes"].shape == (2048, 1, 24)
    graph = read(artifact / "ir.qdc", standard_registry().annotations())
    assert [node.name for node in graph.vocabulary()] == ["wte", "ff_out"]
    assert all(graph.get(node.name, Kept) is None for node in graph.vocabulary())


def test_coverage_and_bytes_count_it_apart_from_the_linears(model: Path, tmp_path: Path) -> None:
    without = compile_tiny(model, tmp_path / "without", PLAIN)
    report = compile_tiny(model, tmp_path / "with", f"{PLAIN},quantize-vocab")
    assert (report.sign_bits, report.effective_bits) == (without.sign_bits, without.effective_bits)
    fates = {row.tensor: (row.status, row.reason) for row in report.coverage}
    assert fates[f"{WTE}.weight"] == ("quantized", "the embedding")
    assert fates[f"{HEAD}.weight"] == ("quantized", "the output head")
    assert {row.tensor: row.status for row in without.coverage}[f"{HEAD}.weight"] == "kept"
    saved = 2 * 2048 * (24 * 2 - (24 + 4))
    assert report.tensor_bytes == without.tensor_bytes - saved


def test_only_the_vocabulary_changes(model: Path, artifact: Path, tmp_path: Path) -> None:
    compile_tiny(model, tmp_path / "plain", PLAIN)
    plain, vocab = Checkpoint(tmp_path / "plain"), Checkpoint(artifact)
    shared = set(plain.headers) & set(vocab.headers)
    assert set(plain.headers) - shared == {f"{WTE}.weight", f"{HEAD}.weight"}
    assert all(torch.equal(plain.tensor(name), vocab.tensor(name)) for name in shared)


def test_its_place_in_the_pipeline_decides_what_calibration_sees(
    model: Path, tmp_path: Path
) -> None:
    seen: dict[str, Tensor] = {}

    def look(label: str, unit: Unit) -> None:
        stream = unit.stream(lambda: [TOKENS])
        stream.enter(unit.stages[0])
        seen.setdefault(label, next(stream.values(unit.stages[0])))

    run_passes(
        model,
        tmp_path,
        spying(look),
        f"spy{{label=before}},quantize-vocab{{bits=4}},spy{{label=after}},{PLAIN}",
    )
    loaded, original = qdc.load(tmp_path / "out", backend="reference"), qdc.load_original(model)
    norm = original.get_submodule("model.transformer.blocks.0.attn_norm")
    for label, module in (("before", original), ("after", loaded)):
        expected = norm(module.get_submodule(WTE)(TOKENS))
        torch.testing.assert_close(seen[label], expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(seen["before"], seen["after"], rtol=1e-3, atol=1e-3)


def test_first_or_last_the_vocabulary_is_the_same(
    model: Path, artifact: Path, tmp_path: Path
) -> None:
    compile_tiny(model, tmp_path / "out", f"{PLAIN},quantize-vocab")
    assert torch.equal(
        qdc.load(tmp_path / "out", backend="reference")(TOKENS),
        qdc.load(artifact, backend="reference")(TOKENS),
    )


def test_calibrated_pipelines_take_it_first(model: Path, tmp_path: Path) -> None:
    passes = "quantize-vocab,stages(calibrate-mcs,sensitivity,abmp-allocate,daq-lower),pack"
    report = compile_tiny(model, tmp_path / "out", passes)
    assert qdc.load(tmp_path / "out", backend="reference")(TOKENS).isfinite().all()
    assert report.sign_bits == 2


@pytest.mark.parametrize("behind", ["default", "gguf-vocab,gguf-lower,pack"])
def test_a_second_run_that_would_undo_the_first_is_refused(behind: str) -> None:
    plan = build_plan(f"quantize-vocab{{bits=4}},{behind}", standard_registry())
    with pytest.raises(InvalidPipeline, match="would undo what quantize-vocab before it does"):
        check_order(plan)


def test_parts_of_a_matrix_do_not_show(
    model: Path, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def watched(block: Tensor, bits: int) -> Any:
        sizes.append(block.numel())
        return fit_uniform(block, bits)

    monkeypatch.setattr(vocabulary_lowering, "PART", 24 * 300)
    monkeypatch.setattr(quantize_vocab, "fit_uniform", watched)
    compile_tiny(model, tmp_path / "out", f"quantize-vocab,{PLAIN}")
    assert max(sizes) == 24 * 300
    whole, parts = Checkpoint(artifact), Checkpoint(tmp_path / "out")
    assert all(torch.equal(whole.tensor(name), parts.tensor(name)) for name in whole.headers)


def test_the_noted_error_is_that_of_the_weights(model: Path, artifact: Path) -> None:
    graph = read(artifact / "ir.qdc", standard_registry().annotations())
    exact = Checkpoint(model).tensor(f"{WTE}.weight").float()
    lost = (rounded(exact, 8, 24) - exact).square().sum() / exact.square().sum()
    assert math.isclose(graph.require("wte", Vocabulary).weight_error, float(lost), rel_tol=1e-4)


class KeepHead(Pass):
    """Keep the output head on purpose."""

    name: ClassVar[str] = "keep-head"
    barrier: ClassVar[bool] = True

    def run(self, unit: Unit) -> None:
        unit.annotate(unit.graph["ff_out"], Kept(reason="a user said so"))


def keeping() -> Registry:
    registry = standard_registry()
    registry.add(KeepHead)
    return registry


def test_a_head_that_somebody_keeps_stays(model: Path, tmp_path: Path) -> None:
    report = run_passes(model, tmp_path, keeping(), f"keep-head,quantize-vocab,{PLAIN}")
    found = settings(tmp_path / "out")
    assert WTE in found["layers"]
    assert found["modules_to_not_convert"] == [HEAD]
    kept = Checkpoint(tmp_path / "out").tensor(f"{HEAD}.weight")
    assert torch.equal(kept, Checkpoint(model).tensor(f"{HEAD}.weight"))
    fates = {row.tensor: (row.status, row.reason) for row in report.coverage}
    assert fates[f"{HEAD}.weight"] == ("kept", "a user said so")
    assert any("missed quantize-vocab %ff_out" in remark for remark in report.remarks)


def test_a_head_that_is_packed_and_kept_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidGraph, match="packed and kept") as caught:
        run_passes(model, tmp_path, keeping(), f"quantize-vocab,keep-head,{PLAIN}")
    assert caught.value.where == ("%ff_out",)


def test_dumps_show_it_from_its_pass_on(model: Path, tmp_path: Path) -> None:
    compile_tiny(
        model, tmp_path / "out", f"quantize-vocab,{PLAIN}", dump_after="all", dump_dir=tmp_path
    )
    for name in ("01_quantize-vocab.txt", "02_rtn-lower.txt", "03_pack.txt"):
        text = (tmp_path / name).read_text()
        assert text.count("@vocab") == 2, name
        assert "@kept" not in text, name


def test_huge_weights_are_named(tmp_path: Path) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[f"{HEAD}.weight"] *= 1e7

    broken = write_checkpoint(
        tmp_path / "broken", d_model=32, mlp_hidden_size=48, dtype=torch.float32, edit=edit
    )
    with pytest.raises(InvalidCheckpoint, match="weights do not fit fp16 scales") as caught:
        compile_tiny(broken, tmp_path / "out", f"quantize-vocab,{PLAIN}")
    assert caught.value.where == ("%ff_out",)


def test_tiny_weights_are_named(tmp_path: Path) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[f"{HEAD}.weight"] *= 1e-9

    broken = write_checkpoint(
        tmp_path / "broken", d_model=32, mlp_hidden_size=48, dtype=torch.float32, edit=edit
    )
    with pytest.raises(InvalidCheckpoint, match="they decode to zero") as caught:
        compile_tiny(broken, tmp_path / "out", f"quantize-vocab,{PLAIN}")
    assert caught.value.where == ("%ff_out",)


@pytest.mark.parametrize("text", ["{bits=2}", "{group=12}", "{group=0}", "{grup=8}"])
def test_bad_options_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidPipeline):
        make_job(tmp_path, tmp_path / "out", passes=f"quantize-vocab{text}")


def test_it_cannot_run_inside_stages(tmp_path: Path) -> None:
    with pytest.raises(InvalidPipeline, match="needs the whole model"):
        make_job(tmp_path, tmp_path / "out", passes="stages(quantize-vocab),pack")


def embedding(rows: int, name: str = "wte.weight") -> Node:
    weight = Parameter(name=name, dtype="f16", shape=(rows, 8))
    node = function("wte", "embedding", ("tokens",), "B", "L", 8)
    return node.model_copy(update={"parameters": (weight,)})


def test_one_tensor_for_both_is_one_matrix() -> None:
    head = linear("head", "wte", 1000, 8)
    nodes = [source("tokens", "B", "L"), embedding(1000, head.weight.name), head]
    graph = LayerGraph(structure(nodes))
    QuantizeVocab().check(graph)
    assert [node.name for node in graph.vocabulary()] == ["wte"]
    assert [graph.owner(name) for name in ("tokens", "wte", "head")] == ["tokens", "wte", "wte"]


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("tied") / "model", CASES["fast-dllm tied"])


def test_a_tied_head_computes_with_the_codes_of_the_embedding(tied: Path, tmp_path: Path) -> None:
    seen: dict[str, Tensor] = {}

    def look(label: str, unit: Unit) -> None:
        for name in ("model.embed_tokens", "lm_head"):
            seen[name] = unit.current(unit.graph[name])

    run_passes(tied, tmp_path, spying(look), "quantize-vocab,spy-all", stop_after="spy-all")
    assert torch.equal(seen["lm_head"], seen["model.embed_tokens"])
    original = Checkpoint(tied).tensor("model.embed_tokens.weight").float()
    assert torch.equal(seen["lm_head"], rounded(original, 8, 32))


@pytest.mark.parametrize("passes", [f"quantize-vocab,{PLAIN}", PLAIN])
def test_a_tied_matrix_is_stored_once(passes: str, tied: Path, tmp_path: Path) -> None:
    report = compile_tiny(tied, tmp_path / "out", passes)
    assert report.predicted_bytes == report.tensor_bytes
    assert len(report.coverage) == len(Checkpoint(tied).headers)
    assert not any("lm_head" in name for name in Checkpoint(tmp_path / "out").headers)
    quantized = passes != PLAIN
    (row,) = (row for row in report.coverage if row.tensor == "model.embed_tokens.weight")
    assert (row.status == "quantized") == quantized
    assert ("lm_head" in settings(tmp_path / "out")["modules_to_not_convert"]) != quantized
    loaded = qdc.load(tmp_path / "out", backend="reference")
    assert loaded.get_parameter("lm_head.weight") is loaded.get_parameter(
        "model.embed_tokens.weight"
    )
    graph = read(tmp_path / "out" / "ir.qdc", standard_registry().annotations())
    assert graph.require("lm_head", Kept).reason == TIED
    assert (graph.get("model.embed_tokens", Packed) is not None) == quantized


def test_a_head_beside_a_tied_embedding_must_be_equal(tmp_path: Path) -> None:
    case = CASES["fast-dllm tied"]

    def add(tensors: dict[str, Tensor], more: float = 0) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + more

    twice = compile_tiny(write_family(tmp_path / "twice", case, edit=add), tmp_path / "a", PLAIN)
    compile_tiny(write_family(tmp_path / "once", case), tmp_path / "b", PLAIN)
    (row,) = (row for row in twice.coverage if row.tensor == "lm_head.weight")
    assert (row.status, row.reason) == ("left out", "the same tensor as model.embed_tokens.weight")
    stored = [load_file(path) for path in sorted(tmp_path.glob("[ab]/model-00001-*"))]
    assert stored[0].keys() == stored[1].keys()
    assert all(torch.equal(stored[0][name], stored[1][name]) for name in stored[0])
    apart = write_family(tmp_path / "apart", case, edit=partial(add, more=1))
    with pytest.raises(InvalidCheckpoint, match="are not equal") as caught:
        compile_tiny(apart, tmp_path / "c", PLAIN)
    assert caught.value.where == ("lm_head.weight, model.embed_tokens.weight",)


def test_a_model_without_vocabulary_is_refused() -> None:
    nodes = [source("tokens", "B", "L"), embedding(64), linear("projection", "wte", 16, 8)]
    with pytest.raises(UnsupportedModel, match="neither embedding nor output head"):
        QuantizeVocab().check(LayerGraph(structure(nodes)))


def test_a_damaged_vocabulary_is_refused(artifact: Path, tmp_path: Path) -> None:
    copy = unsealed(artifact, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"]["layers"][WTE]["rows"] = 2047
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(QdcError, match="the model has no 2047 x 24 weight there") as caught:
        qdc.load(copy, backend="reference")
    assert caught.value.where == (WTE,)


def test_packed_notes_of_the_vocabulary_count_codes_and_grids(artifact: Path) -> None:
    graph = read(artifact / "ir.qdc", standard_registry().annotations())
    note = graph.require("wte", Packed)
    assert note.sign_bits == 8
    assert note.effective_bits == 8 + 32 / 24


def test_a_guide_behind_the_reader_is_told_of_the_order() -> None:
    text = "quantize-vocab{rounding=guided},guide{vocabulary=true}"
    plan = build_plan(text, standard_registry())
    with pytest.raises(InvalidPipeline, match="no pass behind it reads") as caught:
        check_order(plan)
    assert caught.value.help.startswith("behind guide write rounding=guided to quantize-vocab")
