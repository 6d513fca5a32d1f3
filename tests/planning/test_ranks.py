"""Plans of several processes: what is divided, what is sent, what the first of them holds."""

import io
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qdc.checkpoint.folder import Checkpoint
from qdc.cli.plan import print_outlook
from qdc.compiling import job as jobs
from qdc.compiling.compiler import run_job
from qdc.compiling.instruments import Instrument
from qdc.distributed.world import World
from qdc.errors import QdcError
from qdc.frontend.opening import open_model
from qdc.frontend.tracer import Program
from qdc.pipeline.registry import standard_registry
from qdc.planning.forecast import forecast
from qdc.planning.options import ForecastOptions
from qdc.planning.outlook import Outlook
from qdc.planning.verdict import judged
from qdc.report.model import CompileReport
from qdc.streaming.unit import Unit
from tests.support import llada2_headers as llada2
from tests.support.compiles import make_job
from tests.support.experts import write_mixture
from tests.support.outlooks import MACHINE
from tests.support.ranks import on_ranks

SAMPLES = "samples=8 length=12 batch=2"
PASSES = (
    f"stages(rotate,calibrate-cross{{{SAMPLES}}},sensitivity{{damp=0.1}},abmp-allocate,"
    "daq-lower{asymmetry=1}),pack"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "model"
    return write_mixture(folder, experts=8, num_hidden_layers=1)


def planned(model: Path, ranks: int, passes: str = PASSES, **options: Any) -> Outlook:
    asked = ForecastOptions.parse(model_dir=model, passes=passes, ranks=ranks, **options)
    machine = MACHINE.asked(asked.ranks, asked.device_rate)
    return forecast(asked, standard_registry(), machine, text=False)


def test_each_pass_gains_what_it_divides(model: Path) -> None:
    alone, four = planned(model, 1), planned(model, 4)
    gains = {cost.name: cost.gain for cost in four.passes}
    assert {cost.gain for cost in alone.passes} == {1}
    assert gains["calibrate-cross"] == 4
    assert gains["abmp-allocate"] == 1
    assert 2 < gains["daq-lower"] == gains["sensitivity"] < gains["pack"] <= 4
    for one, many in zip(alone.passes, four.passes, strict=True):
        assert many.seconds == pytest.approx(one.seconds / many.gain)
    assert alone.sent_bytes == alone.sent_seconds == 0
    assert four.seconds == sum(cost.seconds for cost in four.passes) + four.sent_seconds
    assert planned(model, 3).passes[1].gain == 2  # four batches: one process has two of them


def test_the_first_process_holds_its_part(model: Path) -> None:
    many = PASSES.replace("samples=8 length=12", "samples=512 length=64")
    alone, four = planned(model, 1, many), planned(model, 4, many)
    held = "calibration states"
    assert four.host.parts[held] == alone.host.parts[held] / 4
    assert four.tensor_bytes == alone.tensor_bytes


class Watch(Instrument):
    """By pass, of how many layers a rank has the form; the last application counts."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}
        self.owned = 0

    def after(self, place: int, unit: Unit) -> None:
        forms = unit._workspace.forms
        layers = [n for region in unit.graph.regions for s in region.stages for n in s.layers]
        lowered = [name for name in layers if forms.of(name)]
        self.found[unit.step.name] = sum(
            all(map(unit.tensors.is_here, forms.of(n))) for n in lowered
        )
        owner, rank = unit._workspace.owners, unit._workspace.world.rank
        self.owned = sum(owner.get(name) == rank for name in layers)


def test_what_is_sent_is_what_a_compile_sends(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three processes the last has no batch: it has the layers that it lowers, and no other."""
    lock, trace = threading.Lock(), open_model

    def traced(*arguments: Any) -> tuple[Checkpoint, Program]:
        with lock:  # torch.fx patches classes while it traces, which threads share
            return trace(*arguments)

    monkeypatch.setattr(jobs, "open_model", traced)

    passes = PASSES.replace("batch=2", "batch=4")

    def work(world: World) -> tuple[CompileReport, Watch]:
        job = make_job(model, tmp_path / "out", passes=passes, instruments=(watch := Watch(),))
        return run_job(job, None, world), watch

    (report, first), (_, second), (_, third) = on_ranks(3, work)
    # Beside what is foreseen there are counts of tokens, with each sum.
    assert 0 < report.sent_bytes - planned(model, 3, passes).sent_bytes < 2 * 2 * 18 * 64
    layers = first.owned + second.owned + third.owned
    assert first.found["calibrate-cross"] > first.owned
    assert third.found["daq-lower"] == third.found["pack"] == third.owned < layers


def test_both_llada2_have_their_published_sizes() -> None:
    for size, weights in (("mini", 16_255_643_392), ("flash", 102_889_705_216)):
        shapes = llada2.shapes({**llada2.SHARED, **llada2.SIZES[size]})
        assert sum(rows * columns for rows, columns in ((*s, 1)[:2] for s in shapes.values())) == (
            weights
        )


def test_llada2_is_planned_from_two_small_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"num_experts": 16, "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2}
    monkeypatch.setitem(
        llada2.SIZES, "few", {**llada2.SIZES["mini"], **few, "num_hidden_layers": 2}
    )
    llada2.write("few", tmp_path)
    outlook = planned(tmp_path, 8, "default")
    dense, sparse = outlook.regions
    assert (dense.waves, sparse.waves) == ((1, 1, 1, 1), (1, 1, 17, 17))
    assert (outlook.layers, len(outlook.coverage)) == (7 + 4 + 3 * 17, 2 * 8 + 3 + 2 + 3 * 17 + 3)
    assert outlook.seconds > 0


def test_gains_are_shown_for_several_processes_alone(model: Path) -> None:
    for ranks in (1, 4):
        asked = ForecastOptions.parse(model_dir=model, passes=PASSES, ranks=ranks)
        registry, machine = standard_registry(), MACHINE.asked(ranks, None)
        found = judged(asked, registry, machine, forecast(asked, registry, machine))
        shown = io.StringIO()
        print_outlook(Console(width=80, file=shown), found)
        lines = shown.getvalue().partition("\npasses")[2].splitlines()
        assert ("gain" in lines[1].split()) == (ranks > 1)
        for cost in found.passes:
            (line,) = (each for each in lines if each.startswith(f"{cost.name} "))
            assert (f" {cost.gain:.3g} x " in line) == (ranks > 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranks": 0}, "--ranks is no number of processes"),
        ({"ranks": "many"}, "--ranks is no number of processes"),
        ({"device_rate": "40T"}, "--device-rate is not three rates"),
        ({"device_rate": "40T,20T,fast"}, "--device-rate is not three rates"),
        ({"device_rate": "40T,0,2T"}, "--device-rate is not three rates"),
    ],
)
def test_numbers_that_are_none_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(QdcError, match=message):
        ForecastOptions.parse(model_dir="model", **options)


def test_given_rates_take_the_place_of_measured_ones(model: Path) -> None:
    outlook = planned(model, 1, device_rate="2G,1G,4G")
    (cost, *_) = outlook.passes
    due = cost.products / 2e9 + cost.exact / 1e9 + cost.elements / 1e9
    assert cost.seconds == pytest.approx(due)
    assert (outlook.measured, outlook.machine.endswith("at the given rates")) == (False, True)
