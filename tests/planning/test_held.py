"""What the plan says is held is held: streams at every boundary, tensors after every pass."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch

from qdc.pipeline.builder import build_plan
from qdc.pipeline.passbase import Pass
from qdc.pipeline.registry import standard_registry
from qdc.planning.walk import walk
from qdc.streaming.account import Account
from qdc.streaming.forecast import Forecast
from qdc.streaming.ledger import Ledger, Peak
from qdc.streaming.unit import Unit
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import run_passes
from tests.support.outlooks import forecast_tiny, stream_forecast
from tests.support.streams import LENGTH, Model, small_model

TABLE = ("lowered layers", "packed layers", "statistics of a stage")
PIPELINES = (
    "stages(calibrate-cross,look,sensitivity,look,abmp-allocate,daq-lower{asymmetry=1},look),pack,"
    "look",
    "quantize-vocab,stages(calibrate-mcs,look,sensitivity,gptq-lower{group=64 zero=packed},look),"
    "look,pack,look",
    "calibrate-mcs,look,sensitivity,look,rtn-lower,look,pack,look",
)


class Look(Pass):
    """Note the bytes of the tensor table, or what is foreseen of it."""

    name: ClassVar[str] = "look"
    found: ClassVar[list[int]] = []
    foreseen: ClassVar[list[int]] = []

    def run(self, unit: Unit) -> None:
        self.found.append(sum(tensor.nbytes for _, tensor in unit.tensors.held()))

    def forecast(self, unit: Forecast) -> None:
        self.foreseen.append(unit.held(*TABLE))


@pytest.mark.parametrize("passes", PIPELINES)
def test_the_tensor_table_is_foreseen(passes: str, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", d_model=64, mlp_hidden_size=128)
    registry = standard_registry()
    registry.add(Look)
    Look.found.clear()
    Look.foreseen.clear()
    forecast_tiny(model, passes, registry)
    options = {"samples": 4, "length": 16}
    run_passes(model, tmp_path, registry, passes, **options, stop_after="look")
    assert Look.found == Look.foreseen
    assert max(Look.found) > 0


@pytest.mark.parametrize("returns", [False, True])
@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16], ids=str)
def test_a_forecast_of_a_stream_holds_what_a_stream_holds(
    held: torch.dtype, returns: bool, tmp_path: Path
) -> None:
    model: Model = small_model(tmp_path)
    model.batches = [batch[:1] for batch in model.batches]
    stream = model.stream(returns=returns, held=held)
    forecast = stream_forecast(model, samples=2, batch=1, held=held.itemsize, returns=False)
    for region in model.regions:
        for stage in region.stages:
            stream.enter(stage)
            forecast.enter(stage)
            assert set(stream.kept[0]) == set(forecast.names)
            assert stream.kept_bytes() == forecast.kept_bytes()
        stream.leave(region)
        forecast.leave(region)
        assert stream.kept_bytes() == forecast.kept_bytes()
    (work,) = forecast.account.work.values()
    assert stream.linear_calls == work.linears


def test_a_forecast_takes_no_longer_for_more_samples(tmp_path: Path) -> None:
    """None of them is there: a plan may be asked for more than would fit anywhere."""
    model, many = small_model(tmp_path), 1 << 40
    few, most = (
        stream_forecast(model, samples=count, batch=2, held=2, returns=False) for count in (2, many)
    )
    for forecast in (few, most):
        forecast.leave(model.regions[0])
    assert most.kept_bytes() == many // 2 * few.kept_bytes()
    assert most.account.work[0].products == many // 2 * few.account.work[0].products


def test_the_entrance_of_a_region_counts_where_streams_go_back(tmp_path: Path) -> None:
    model = small_model(tmp_path)
    forecasts = [
        stream_forecast(model, samples=2, batch=1, held=4, returns=returns)
        for returns in (False, True)
    ]
    region = model.regions[1]
    for forecast in forecasts:
        forecast.leave(model.regions[0])
        forecast.enter(region.stages[2])
    plain, returning = forecasts
    states = (
        2 * LENGTH * model.program.graph[model.regions[0].nodes[-1]].type.elements({"B": 1, "L": 1})
    )
    assert returning.kept_bytes() - plain.kept_bytes() == 4 * states
    returning.enter(region.stages[0])
    assert returning.boundary < plain.boundary


def test_a_device_has_a_memory_of_its_own(tmp_path: Path) -> None:
    """States and the checkpoint's weights wait on the host, statistics are on the device."""
    model = small_model(tmp_path)
    ledger = Ledger(shared=False)
    plan = build_plan("release", standard_registry(), {"samples": 4, "length": 16})
    walk(plan, Account(model.program, ledger, held=2, returns=plan.returns()))
    host, device = ledger.peak("host").parts, ledger.peak("device").parts
    assert "statistics of a stage" in device
    assert not {"statistics of a stage", "working set of sensitivity"} & set(host)
    assert {"weights of a region", "calibration states"} <= set(host)
    assert not {"weights of a region", "calibration states"} & set(device)


def test_a_peak_says_what_it_was() -> None:
    ledger = Ledger(shared=False)
    ledger.moment = "one"
    ledger.hold("a", "weights", 10)
    ledger.hold("b", "statistics", 5, "device")
    ledger.moment = "two"
    ledger.work("working set", 7)
    ledger.release("a")
    ledger.hold("c", "weights", 9)
    assert ledger.peak("host") == Peak(nbytes=10, moment="one", parts={"weights": 10})
    assert ledger.peak("device") == Peak(
        nbytes=12, moment="two", parts={"working set": 7, "statistics": 5}
    )


def test_the_cpu_has_one_memory() -> None:
    ledger = Ledger(shared=True)
    ledger.hold("a", "weights", 10)
    ledger.hold("b", "statistics", 5, "device")
    ledger.work("working set", 7)
    assert ledger.peak("host").nbytes == 22
    assert ledger.peak("device").nbytes == 0
