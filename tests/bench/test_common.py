"""What benchmarks share, and that there are no benchmarks but those that somebody needs."""

import math
import os
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import bench
from bench import floors, scaling, streaming
from bench.common.checkpoint import build
from bench.common.clocks import Stopwatch
from bench.common.files import write
from bench.common.markdown import table
from bench.common.pipelines import overrides, pipeline
from bench.common.processes import (
    EMBEDDED,
    ROOT,
    Failed,
    answer,
    environment,
    peak_bytes,
    reset_peak,
)
from bench.common.samples import held_out
from bench.common.shapes import DREAM, LLADA, linears
from bench.common.statistics import pearson, spearman
from qdc.comparing.hooks import watching
from qdc.frontend.opening import open_model

MODULES = [found.name for found in pkgutil.walk_packages(bench.__path__, "bench.")]
BENCHMARKS = sorted({name.split(".")[1] for name in MODULES} - {"common"})


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_described_and_cited_or_run(name: str) -> None:
    readme = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    assert f"| `bench.{name}" in readme
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "Makefile"]
    texts = [path.read_text(encoding="utf-8") for path in pages]
    assert any(f"bench.{name}" in text for text in texts), f"nobody cites bench.{name}: delete it"


def test_every_module_can_be_imported() -> None:
    assert len(MODULES) > len(BENCHMARKS)
    for name in MODULES:
        import_module(name)


def test_a_random_checkpoint_is_one_that_qdc_opens(tmp_path: Path) -> None:
    sizes = {"regions": 2, "width": 256, "hidden": 384, "vocabulary": 320}
    checkpoint, program = open_model(build(tmp_path / "model", **sizes))  # type: ignore[arg-type]
    graph = program.graph
    assert len(graph.regions) == 2
    shapes = {node.name: (node.rows, node.columns) for node in graph.layers()}
    assert shapes["blocks.1.ff_out"] == (256, 384)
    names = {parameter.name for node in graph for parameter in node.parameters}
    assert all(checkpoint.tensor(name).dtype == torch.bfloat16 for name in names)
    # A region is a shard of its own: none holds more than one region, or the vocabulary.
    assert len(list((tmp_path / "model").glob("*.safetensors"))) == 3


def test_held_out_windows_have_the_length_that_is_asked_for() -> None:
    assert held_out(EMBEDDED, 3, length=32).shape == (3, 32)
    longest = open_model(EMBEDDED)[1].graph.model.max_length
    assert held_out(EMBEDDED, 2).shape == (2, longest)


def test_shapes_name_every_stage_and_new_ones_alone() -> None:
    assert [shape.layer for shape in linears(LLADA)] == [
        "q/k/v", "q or attention out", "gate/up", "gate or up", "down", "head",
    ]  # fmt: skip
    assert ("k or v", (512,)) in [(shape.layer, shape.rows) for shape in linears(DREAM)]


def test_a_process_answers_or_tells_its_last_lines() -> None:
    code = "import os, bench.common.shapes as s; print(os.environ['OMP_NUM_THREADS'], s.__name__)"
    assert answer([sys.executable, "-c", code], environment(3)) == "3 bench.common.shapes\n"
    fail = "import sys; print('out of luck', file=sys.stderr); sys.exit(3)"
    with pytest.raises(Failed, match=r"^exit status 3\nout of luck$"):
        answer([sys.executable, "-c", fail], environment())
    with pytest.raises(subprocess.TimeoutExpired):
        answer([sys.executable, "-c", "import time; time.sleep(60)"], environment(), timeout=0.2)


def test_another_interpreter_does_not_inherit_the_import_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    assert environment()["PYTHONPATH"] == f"{ROOT}{os.pathsep}elsewhere"
    assert environment(inherit=False)["PYTHONPATH"] == str(ROOT)


def test_processor_time_counts_children() -> None:
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    with Stopwatch() as watch:
        subprocess.run([sys.executable, "-c", busy], check=True)
    assert watch.processor > 0.25


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc")
def test_peak_counts_from_the_last_reset() -> None:
    size = 64 << 20
    torch.ones(size, dtype=torch.uint8)
    reset_peak()
    before = peak_bytes()
    torch.ones(size, dtype=torch.uint8)
    assert size // 2 < peak_bytes() - before < 2 * size
    assert peak_bytes(os.getpid()) == peak_bytes()


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write("first", path)
    write("second", path)
    assert path.read_text() == "second"
    assert [found.name for found in path.parent.iterdir()] == ["a.json"]


def test_cells_cannot_break_a_table() -> None:
    assert table(("a", "b"), [("x|y", 2)]) == "| a | b |\n| --- | --: |\n| x/y | 2 |"


def test_overrides_are_what_the_pipeline_takes() -> None:
    assert overrides(pipeline(), 1, None) == {"seed": 1}
    assert overrides(pipeline(), 1, 5) == {"seed": 1, "samples": 5}
    assert overrides("rtn-lower,pack", 1, 5) == {}


def test_correlations_are_those_of_values_and_of_ranks() -> None:
    assert pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert spearman([1, 2, 3], [1, 100, 10_000]) == pytest.approx(1)
    assert math.isnan(pearson([1, 1, 1], [1, 2, 3]))


def test_a_look_may_replace_the_output_and_is_taken_away() -> None:
    model = torch.nn.Sequential(torch.nn.Identity())
    x = torch.ones(2)
    with watching(model, {"0": lambda read, output: output + read}):
        assert torch.equal(model(x), 2 * x)
    assert torch.equal(model(x), x)


def test_the_stream_gives_the_moments_of_whole_forwards(capsys: pytest.CaptureFixture[str]) -> None:
    streaming.main(["--samples", "2", "--length", "16", "--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[3] for line in lines[:2]] == ["0.98", "5.00"]
    assert float(lines[2].split()[-1]) < 1e-5


def test_arithmetic_of_ownership_and_of_floors(capsys: pytest.CaptureFixture[str]) -> None:
    scaling.main(["--arithmetic"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-8] for line in lines[1:]] == ["stages", "waves", "regions"] * 2
    assert "1.54" in lines[1]
    floors.main()
    table_ = capsys.readouterr().out.splitlines()
    page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    shown = [line for line in page.splitlines() if line.startswith(("| LLaDA", "| Dream"))]
    assert shown
    assert set(shown) <= set(table_)
