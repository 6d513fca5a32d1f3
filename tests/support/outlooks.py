"""Plans of tiny compiles."""

from pathlib import Path
from typing import Any

from qdc.backends.reference import Reference
from qdc.passes import PRESETS
from qdc.pipeline.registry import Registry, standard_registry
from qdc.planning.configure import configure
from qdc.planning.foresee import foresee
from qdc.planning.options import PlanOptions
from qdc.planning.outlook import Outlook
from tests.support.compiles import LENGTH, SAMPLES


def foresee_tiny(
    model: Path, passes: str, registry: Registry | None = None, **options: Any
) -> Outlook:
    """Foresee what ``compile_tiny`` would do."""
    text = PRESETS.get(passes, passes)
    if "calibrate-" in text or "polish" in text:
        options = {"samples": SAMPLES, "length": LENGTH, **options}
    asked = PlanOptions.parse(model_dir=model, passes=passes, **options)
    plan, _ = configure(asked, registry or standard_registry())
    return foresee(asked, plan, Reference())
