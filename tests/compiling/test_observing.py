"""Everything that watches a run: verifier, repro folder, dumps, meter, remarks."""

import difflib
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from qdc.compiling.instruments import peak_bytes
from qdc.errors import InvalidCheckpoint, InvalidGraph, QdcError
from qdc.ir.annotations import Kept, Orders
from qdc.ir.dump import read
from qdc.numerics.blocks import block_widths
from qdc.pipeline.passbase import Kinds, Pass
from qdc.pipeline.registry import standard_registry
from qdc.report.model import CompileReport
from qdc.streaming.unit import Unit
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny, run_passes, spying

TAGS = [
    {"moment"},
    {"moment", "factor", "salience"},
    {"moment", "factor", "salience", "orders"},
    {"moment", "factor", "salience", "orders", "daq"},
    {"moment", "factor", "salience", "orders", "daq", "packed"},
]


class Forgetful(Pass):
    """Says that it provides orders, and forgets one layer."""

    name: ClassVar[str] = "forgetful"
    provides: ClassVar[Kinds] = (Orders,)

    def run(self, unit: Unit) -> None:
        for node in unit.layers():
            widths = block_widths(node.columns)
            if not node.name.endswith("1.up_proj"):
                unit.annotate(node, Orders(blocks=(2,) * len(widths), widths=widths))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("observing") / "model"
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=48)


def wrong_orders(label: str, unit: Unit) -> None:
    (*_, node) = unit.layers()
    unit.annotate(node, Orders(blocks=(9,), widths=block_widths(node.columns)))


def raise_bug(label: str, unit: Unit) -> None:
    wrong_orders(label, unit)
    raise ZeroDivisionError("a bug of the pass")


def raise_mistake(label: str, unit: Unit) -> None:
    raise InvalidCheckpoint("the input is at fault")


def test_a_pass_that_breaks_the_graph_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidGraph) as caught:
        run_passes(
            model,
            tmp_path,
            spying(wrong_orders),
            "rtn-lower,stages(spy{label=x})",
            stop_after="spy",
            command="qdc compile here -o there",
        )
    assert caught.value.what.startswith("spy left an invalid graph: @orders: order 9 is outside")
    assert caught.value.where == ("%blocks.0.v_proj",)
    text = (tmp_path / "out-repro" / "error.txt").read_text()
    assert "pass     spy{label=x}\n" in text
    assert "unit     blocks.0: blocks.0.q_proj blocks.0.k_proj blocks.0.v_proj\n" in text
    assert "rerun    qdc compile here -o there\n" in text
    assert "--passes 'rtn-lower,stages(spy{label=x})' --stop-after spy\n" in text
    assert "InvalidGraph" in text
    assert any("out-repro" in note for note in caught.value.__notes__)


def test_the_graph_before_the_failing_pass_is_kept(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run_passes(model, tmp_path, spying(raise_bug), "rtn-lower,spy,pack", stop_after="pack")
    folder = tmp_path / "out-repro"
    assert sorted(p.name for p in folder.iterdir()) == ["before.qdc", "before.txt", "error.txt"]
    graph = read(folder / "before.qdc", standard_registry().annotations())
    assert graph.after == "rtn-lower"
    carried = {node.name: set(graph.annotations(node.name)) for node in graph.layers()}
    assert {name for name, slots in carried.items() if slots} == {
        name for name in carried if name.startswith("blocks.0.")
    }
    assert set().union(*carried.values()) == {"lowered"}
    assert "a bug of the pass" in (folder / "error.txt").read_text()


def test_a_mistake_in_the_input_leaves_no_folder(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidCheckpoint):
        run_passes(model, tmp_path, spying(raise_mistake), "rtn-lower,spy", stop_after="spy")
    assert list(tmp_path.iterdir()) == []


def test_a_pass_that_breaks_its_word_is_named(model: Path, tmp_path: Path) -> None:
    registry = standard_registry()
    registry.add(Forgetful)
    with pytest.raises(InvalidGraph) as caught:
        run_passes(model, tmp_path, registry, "forgetful", stop_after="forgetful")
    assert "forgetful provides @orders, and 1 of 7 layers lack it" in caught.value.what
    assert caught.value.where == ("%blocks.1.up_proj",)


def test_a_kept_layer_is_left_out_from_then_on(model: Path, tmp_path: Path) -> None:
    def protect(label: str, unit: Unit) -> None:
        for node in unit.layers():
            if node.name.endswith("v_proj"):
                unit.annotate(node, Kept(reason="protected"))

    report = run_passes(model, tmp_path, spying(protect), "spy,rtn-lower,pack")
    kept = [row for row in report.coverage if row.reason == "protected"]
    assert len(kept) == 2
    assert len(report.layers) == 12


def test_keeping_a_layer_that_is_packed_already_is_refused(model: Path, tmp_path: Path) -> None:
    def protect(label: str, unit: Unit) -> None:
        for node in unit.layers():
            if node.name.endswith("v_proj"):
                unit.annotate(node, Kept(reason="too late"))

    with pytest.raises(InvalidGraph, match="packed and kept, or neither") as caught:
        run_passes(model, tmp_path, spying(protect), "rtn-lower,pack,spy")
    assert caught.value.where == ("%blocks.0.v_proj", "%blocks.1.v_proj")
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[CompileReport, Path]:
    folder = tmp_path_factory.mktemp("dumps")
    model = write_checkpoint(folder / "model", d_model=160, mlp_hidden_size=320)
    report = compile_tiny(model, folder / "out", dump_after=["all"])
    return report, folder


def test_dumps_hold_the_notes_of_the_passes_so_far(
    compiled: tuple[CompileReport, Path],
) -> None:
    report, folder = compiled
    steps = ["calibrate-mcs", "sensitivity", "abmp-allocate", "daq-lower", "pack"]
    files = [f"{n + 1:02d}_{s}.{end}" for n, s in enumerate(steps) for end in ("qdc", "txt")]
    assert [Path(dump).name for dump in report.dumps] == files
    assert {Path(dump).parent for dump in report.dumps} == {folder / "out-dumps"}
    tags = standard_registry().annotations()
    pipeline = report.pipeline.split(",")
    for number, (step, expected) in enumerate(zip(steps, TAGS, strict=True)):
        graph = read(folder / "out-dumps" / f"{number + 1:02d}_{step}.qdc", tags)
        for node in graph.layers():
            assert {note.tag for note in graph.annotations(node.name).values()} == expected
        head = ",".join(pipeline[: number + 1])
        assert graph.after == (head if number >= 3 else head + ")")


def test_each_dump_only_adds_to_the_one_before(compiled: tuple[CompileReport, Path]) -> None:
    texts = [Path(d).read_text().splitlines() for d in compiled[0].dumps if d.endswith(".txt")]
    for (before, after), tags in zip(pairwise(texts), TAGS[1:], strict=True):
        diff = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
        removed = [line[2:] for line in diff if line[0] == "-"]
        added = [line[2:] for line in diff if line[0] == "+"]
        assert [line.split()[0] for line in removed] == ["after"]
        assert added[0].split()[0] == "after"
        fresh = tags - TAGS[TAGS.index(tags) - 1]
        assert {line.split()[0] for line in added[1:]} == {f"@{tag}" for tag in fresh}
        assert len(added) == 1 + 14 * len(fresh)


def test_only_the_named_passes_are_dumped(model: Path, tmp_path: Path) -> None:
    report = compile_tiny(
        model,
        tmp_path / "out",
        "rtn-lower,pack,rtn-lower,pack",
        dump_after=["rtn-lower"],
        dump_dir=tmp_path / "dumps",
    )
    assert [Path(dump).name for dump in report.dumps] == [
        "01_rtn-lower.qdc",
        "01_rtn-lower.txt",
        "03_rtn-lower.qdc",
        "03_rtn-lower.txt",
    ]
    with pytest.raises(QdcError, match="the pipeline has no pass 'pak'"):
        compile_tiny(model, tmp_path / "two", "rtn-lower,pack", dump_after=["pak"])


def test_stopping_early_dumps_and_writes_no_artifact(model: Path, tmp_path: Path) -> None:
    report = compile_tiny(model, tmp_path / "out", stop_after="sensitivity")
    assert report.out is None
    assert report.pipeline.endswith(",sensitivity)")
    assert [Path(dump).name for dump in report.dumps] == [
        "02_sensitivity.qdc",
        "02_sensitivity.txt",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["out-dumps"]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"dump_after": ["pack"]}, "the pipeline has no pass 'pack'"),
        ({"force": True}, "--stop-after writes none"),
    ],
)
def test_options_without_effect_on_an_early_stop_are_refused(
    model: Path, tmp_path: Path, options: dict[str, Any], what: str
) -> None:
    with pytest.raises(QdcError, match=what):
        compile_tiny(model, tmp_path / "out", stop_after="sensitivity", **options)


def test_a_dump_folder_without_dumps_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(QdcError, match="nothing is dumped"):
        compile_tiny(model, tmp_path / "out", "rtn-lower,pack", dump_dir=tmp_path / "dumps")


def test_the_report_counts_units_time_and_forwards(compiled: tuple[CompileReport, Path]) -> None:
    report, _ = compiled
    assert [(row.name, row.units) for row in report.passes] == [
        ("calibrate-mcs", 8),
        ("sensitivity", 8),
        ("abmp-allocate", 8),
        ("daq-lower", 8),
        ("pack", 2),
    ]
    assert all(row.seconds > 0 and row.peak_bytes > 1 << 20 for row in report.passes)
    assert sum(row.seconds for row in report.passes) < report.seconds
    assert any(
        line.startswith("passed daq-lower %blocks.0.q_proj error=") for line in report.remarks
    )


def test_about_one_forward_of_each_layer_is_enough(
    compiled: tuple[CompileReport, Path],
) -> None:
    report, _ = compiled
    # all linears but the last of the last region, whose output nothing calibrates; the release
    # forwards a layer nine times: a full-precision pass, one for each of seven linears, one more
    assert report.layer_forwards == pytest.approx(13 / 14)
    assert report.layer_forwards <= 1.01 < 9


def test_memory_is_measured() -> None:
    assert peak_bytes(torch.device("cpu")) > 1 << 20
