"""What the samples of a compile will be made of, and what of the text will be refused."""

from collections.abc import Callable
from pathlib import Path

from qdc.errors import InvalidCalibration, QdcError
from qdc.ir.calibration_use import SampledStates
from qdc.ir.facts import ModelFacts
from qdc.ir.text_use import TextUse
from qdc.passkit.calibration import CalibrationOptions
from qdc.passkit.samples import draw_samples
from qdc.pipeline.plan import Plan
from qdc.text.records import Fields
from qdc.text.source import read_source
from qdc.text.tokenizer import Encoder

Looked = tuple[tuple[TextUse, ...], tuple[str, ...]]
"""What samples are made of, each once; and warnings."""


def foreseen_states(plan: Plan, model: ModelFacts) -> tuple[SampledStates, ...]:
    """What states passes will take of the model's own trajectories, each once."""
    steps = [step for step in plan.passes() if isinstance(step, CalibrationOptions)]
    found = [step.foreseen_states(model) for step in steps]
    return tuple(dict.fromkeys(use for use in found if use is not None))


def look_at_text(
    plan: Plan,
    model: ModelFacts,
    read: Callable[[], Encoder],
    calibration: Path | None,
    fields: Fields,
) -> Looked:
    """Draw the samples of every pass that calibrates, and say what would be refused.

    ``read`` opens the model's encoder.

    Raises:
        QdcError: the file of calibration text cannot be read.
    """
    steps = [step for step in plan.passes() if isinstance(step, CalibrationOptions)]
    if not steps:
        return (), ()
    source = read_source(calibration, fields)
    said: dict[str, None] = {}
    if source.left_out:
        said[f"of the calibration text {source.left_out} and are left out"] = None
    try:
        encode = read()
    except QdcError as error:
        return (), (*said, f"the calibration text was not looked at: {error.what}")
    if encode.withheld:
        said[encode.withheld] = None
    uses: dict[TextUse, None] = {}
    for step in steps:
        length = min(step.length or model.max_length, model.max_length)
        try:
            use = draw_samples(
                source, encode, model, step.samples, length, step.seed,
                step.visible(source), step.pack,
                isolate=step.isolate,
            ).use  # fmt: skip
        except InvalidCalibration as error:
            said[f"the calibration text will be refused: {error.what}"] = None
            continue
        uses[use] = None
        said |= dict.fromkeys(use.warnings)
    return tuple(uses), tuple(said)
