"""The data of a report: complete, consistent with the artifact, and readable again."""

import hashlib
import json
from pathlib import Path

import pytest

from qdc.artifact.commit import artifact_digest
from qdc.compiling.collect import full_text, layer_reports, outside_reports, size_parts
from qdc.errors import QdcError
from qdc.format.codec import Lowered
from qdc.format.multibinary import MultiBinary
from qdc.ir.annotations import Orders, Packed
from qdc.ir.graph import LayerGraph, Region, Stage
from qdc.ir.tuned import Tuned
from qdc.pipeline.builder import build_plan
from qdc.pipeline.registry import standard_registry
from qdc.report.files import read_report
from qdc.report.model import CompileReport
from tests.support.compiles import compile_tiny
from tests.support.graphs import linear, ref, source, structure


def test_every_byte_of_the_artifact_is_explained(compiled: CompileReport) -> None:
    assert compiled.predicted_bytes == compiled.tensor_bytes > 0
    assert sum(part.nbytes for part in compiled.parts) == compiled.predicted_bytes
    assert sum(file.nbytes for file in compiled.files) == compiled.bytes_after
    assert compiled.out is not None
    on_disk = {path.name: path.stat().st_size for path in Path(compiled.out).iterdir()}
    assert {file.name: file.nbytes for file in compiled.files} == on_disk
    parts = {part.name: part.nbytes for part in compiled.parts}
    assert parts["linears: signs and codes"] == sum(x.payload_bits for x in compiled.layers) // 8
    linears = sum(size for name, size in parts.items() if name.startswith("linears: "))
    assert linears == sum(layer.nbytes for layer in compiled.layers)


def test_the_codec_says_what_its_bits_are(
    compiled: CompileReport, model: Path, tmp_path: Path
) -> None:
    codes = compile_tiny(model, tmp_path / "out", "quantize-vocab,rtn-lower,pack")
    for report, word in ((compiled, "sign bits"), (codes, "code bits")):
        assert report.bits_word == word
        assert {layer.bits_word for layer in (*report.layers, *report.outside)} == {word}
        assert report.as_data()["bits_word"] == word


def test_a_report_without_the_word_is_still_read(compiled: CompileReport) -> None:
    data = json.loads(json.dumps(compiled.as_data()))
    del data["bits_word"]
    for layer in data["layers"]:
        del layer["bits_word"]
    assert CompileReport.from_data(data, "report.json").sign_bits == compiled.sign_bits


def test_block_errors_add_up_to_the_layers_error(compiled: CompileReport) -> None:
    for layer in compiled.layers:
        assert len(layer.block_errors) == len(layer.orders) == -(-layer.columns // 128)
        assert sum(layer.block_errors) == pytest.approx(layer.error, rel=1e-9)


def test_without_calibration_no_error_is_claimed(model: Path, tmp_path: Path) -> None:
    report = compile_tiny(model, tmp_path / "out", "data-free", write_report=True)
    assert {layer.error for layer in report.layers} == {None}
    assert {layer.block_errors for layer in report.layers} == {()}
    page = (tmp_path / "out-report" / "report.html").read_text(encoding="utf-8")
    assert 'id="error"' not in page


def test_the_full_pipeline_is_the_same_pipeline(compiled: CompileReport) -> None:
    plan = build_plan(compiled.full_pipeline, standard_registry())
    assert str(plan) == compiled.pipeline
    for row in compiled.passes:
        for key, value in row.options.items():
            assert f"{key}={value}" in compiled.full_pipeline
    allocate = next(row for row in compiled.passes if row.name == "abmp-allocate")
    assert allocate.changed == ("ratio",)
    assert {"ratio", "base"} <= set(allocate.options)


def test_the_full_pipeline_keeps_the_order_of_the_stages() -> None:
    plan = build_plan("release", standard_registry())
    assert str(build_plan(full_text(plan), standard_registry())) == str(plan)


def test_digests_are_those_of_the_files(compiled: CompileReport) -> None:
    assert compiled.out is not None
    out = Path(compiled.out)
    assert compiled.artifact_sha256 == artifact_digest(out)
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert compiled.checkpoint_sha256 == config["checkpoint_sha256"]
    assert compiled.calibration is not None
    assert compiled.calibration.endswith(config["calibration"]["sha256"])
    assert {"qdc", "torch", "python", "threads"} <= set(compiled.environment)


def test_the_digest_depends_on_names_and_contents(tmp_path: Path) -> None:
    def digest(**files: bytes) -> str:
        folder = tmp_path / hashlib.sha256(repr(files).encode()).hexdigest()
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        return artifact_digest(folder)

    found = [digest(a=b"bc"), digest(ab=b"c"), digest(a=b"b", c=b""), digest(a=b"bd")]
    assert len(set(found)) == 4
    shard = {"x.safetensors": b"1"}
    assert digest(a=b"bc", **shard) == digest(a=b"bc", **{"x.safetensors": b"2"}) == found[0]


def test_what_is_written_is_read_back(compiled: CompileReport) -> None:
    assert compiled.out is not None
    assert compiled.report is not None
    page = Path(compiled.report)
    for place in (Path(compiled.out), page.parent, page.with_name("report.json")):
        assert read_report(place) == compiled
    data = json.loads(page.with_name("report.json").read_text(encoding="utf-8"))
    assert data == json.loads(json.dumps(compiled.as_data()))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "cannot read"),
        ("[]", "no JSON object"),
        ("{}", "schema version None"),
        ('{"schema_version": 2}', "schema version 2"),
        ('{"schema_version": 1}', "damaged: out"),
    ],
)
def test_what_is_no_report_is_refused(text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(QdcError) as caught:
        read_report(tmp_path)
    assert what in caught.value.what
    assert caught.value.where == (str(tmp_path / "report.json"),)


def packed(graph: LayerGraph, name: str, order: int) -> None:
    """Annotate a node as if it had been lowered to one order and packed."""
    node = graph[name]
    codec = MultiBinary(rows=node.rows, columns=node.columns, block=8, orders=(order,))
    graph.annotate(name, Orders(blocks=(order,), widths=(node.columns,)))
    graph.annotate(name, Lowered(codec=codec, error=0.5, block_errors=(0.5,)))
    stored = codec.specification()
    refs = [ref(s, *map(int, t.shape), dtype=t.dtype) for s, t in stored.items()]
    graph.annotate(
        name,
        Packed(
            tensors=tuple(refs),
            suffixes=tuple(stored),
            payload_bits=codec.payload_bits,
            weights=node.rows * node.columns,
        ),
    )


def test_matrices_outside_of_the_blocks_are_counted_apart() -> None:
    nodes = [source("x", "B", "L", 8), linear("h", "x", 16, 8), linear("head", "h", 24, 16)]
    inner = Region(name="h", nodes=("h",), stages=(Stage(value="x", layers=("h",)),))
    graph = LayerGraph(structure([nodes[0], nodes[1], linear("head", "h", 24, 8)], [inner]))
    packed(graph, "h", 2)
    before = {part.name: part.nbytes for part in size_parts(graph, {})}
    assert before["output head, kept"] == 24 * 8 * 2
    packed(graph, "head", 4)
    assert [layer.name for layer in layer_reports(graph)] == ["h"]
    [head] = outside_reports(graph)
    assert (head.name, head.sign_bits) == ("head", 4.0)
    after = {part.name: part.nbytes for part in size_parts(graph, {})}
    assert after["vocabulary: signs and codes"] == 24 * 8 * 4 // 8
    assert "output head, kept" not in after
    assert after["linears: scales"] == before["linears: scales"] == 2 * 2 * (16 + 8)


def test_tuned_tensors_count_in_place_of_the_checkpoints() -> None:
    nodes = [source("x", "B", "L", 8), linear("h", "x", 16, 8, bias=True), linear("o", "h", 8, 16)]
    graph = LayerGraph(structure(nodes))
    before = {part.name: part.nbytes for part in size_parts(graph, {})}
    assert before == {"output head, kept": 2 * 16 * 8 * 2, "biases, kept": 16 * 2}
    graph.annotate("h", Tuned(roles=("bias",), tensors=(ref("h.bias", 16),)))
    graph.annotate("o", Tuned(roles=("bias",), tensors=(ref("o.bias", 8),)))
    after = {part.name: part.nbytes for part in size_parts(graph, {})}
    assert after == {"output head, kept": 2 * 16 * 8 * 2, "biases, tuned": (16 + 8) * 4}
