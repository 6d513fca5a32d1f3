"""Plans of tiny compiles."""

from pathlib import Path
from typing import Any

from qdc.passes.polish import Polish
from qdc.pipeline.registry import Registry, standard_registry
from qdc.pipeline.traversal import Scope
from qdc.planning.forecast import forecast
from qdc.planning.machine import Machine
from qdc.planning.options import PlanOptions
from qdc.planning.outlook import Outlook
from qdc.planning.rates import Rates
from qdc.streaming.account import Account
from qdc.streaming.forecast import Forecast
from qdc.streaming.ledger import Ledger
from qdc.streaming.streamforecast import StreamForecast
from tests.support.compiles import LENGTH, SAMPLES, pipeline_text
from tests.support.streams import LENGTH as TOKENS
from tests.support.streams import Model

MACHINE = Machine(
    "cpu", "a test", Rates(1e9, 1e9, 1e9), measured=True,
    memory=1 << 34, free_memory=1 << 34, device_memory=None, disk=1 << 40,
)  # fmt: skip
"""Whose speed is not measured."""


def forecast_tiny(
    model: Path,
    passes: str,
    registry: Registry | None = None,
    machine: Machine = MACHINE,
    **options: Any,
) -> Outlook:
    """Foresee what ``compile_tiny`` would do."""
    text = pipeline_text(passes)
    if any(name in text for name in ("calibrate-", "polish", "distill", "guide")):
        options = {"samples": SAMPLES, "length": LENGTH, **options}
    asked = PlanOptions.parse(model_dir=model, passes=passes, **options)
    return forecast(asked, registry or standard_registry(), machine)


def stream_forecast(
    model: Model, *, samples: int, batch: int, held: int, returns: bool
) -> StreamForecast:
    """A stream of these samples without data, of a pass of its own."""
    account = Account(model.program, Ledger(shared=True), held=held, returns=returns)
    scope = Scope(Polish(), 0, model.program.graph, (), None, whole_region=True)
    return Forecast.of(scope, account).stream(samples, TOKENS, batch)
