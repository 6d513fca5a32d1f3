"""From a folder to a checked checkpoint and its layer graph, in one call."""

from pathlib import Path

from qdc.checkpoint.compiled import refuse_compiled
from qdc.checkpoint.folder import Checkpoint
from qdc.frontend.coverage import check_tensors, mark_kept
from qdc.frontend.select import Choice, choose, trace_checkpoint
from qdc.frontend.tracer import Program
from qdc.models.families import BUILT_IN, Families


def open_model(
    folder: Path, choice: Choice = "auto", families: Families = BUILT_IN
) -> tuple[Checkpoint, Program]:
    """Read headers, trace the model on the meta device, and check that every tensor has a place.

    Raises:
        InvalidCheckpoint: tensors are missing, unmapped or of the wrong shape.
        UnsupportedModel: no front end takes the model, or not the one that was chosen.
    """
    checkpoint = Checkpoint(folder)
    refuse_compiled(checkpoint)
    program = trace_checkpoint(checkpoint, choose(checkpoint.config, choice, families), families)
    check_tensors(program.graph, checkpoint, program.module)
    mark_kept(program.graph)
    return checkpoint, program
