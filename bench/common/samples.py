"""Text as a model sees it: the samples of ``calibrate-mcs``, and held-out windows."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from qdc.evaluation.held_out import held_out_windows
from qdc.frontend.encoding import open_encoder
from qdc.frontend.opening import open_model
from qdc.passes.calibrate_mcs import CalibrateMcs
from qdc.passkit.states import States
from qdc.streaming.calibration import Calibration
from qdc.text.source import read_text
from qdc.text.tokenizer import encoder, load_tokenizer


def calibration_states(model: Path, seed: int, text: Path | None = None, **options: Any) -> States:
    """What ``calibrate-mcs`` with these ``options`` draws from ``text``.

    The embedded text if none is given. Rollouts need a running compile and are not to be had here.
    """
    drawer = CalibrateMcs(seed=seed, **options)
    # Documents are encoded as a compile encodes them, with what the family puts around them.
    source = Calibration(read_text(text), open_encoder(model))
    graph = open_model(model)[1].graph
    drawer.check(graph)
    # All that drawing reads of a unit, rollouts apart.
    unit: Any = SimpleNamespace(
        calibration=lambda: source, model=graph.model, note_text=lambda use: None
    )
    found: States = drawer.draw(unit)
    return found


def held_out(
    model: Path, windows: int, text: Path | None = None, length: int | None = None
) -> Tensor:
    """Clean held-out windows ``i64[windows, length]``, or as many as there are.

    No window holds parts of two documents, so that figures of other days are of the same windows.
    ``text`` is ``heldout.jsonl`` in the model's folder and ``length`` the model's longest, if they
    are not given. Raises QdcError as ``qdc.evaluation.held_out`` does.
    """
    documents = read_text(text or model / "heldout.jsonl").documents
    encode = encoder(load_tokenizer(model))
    size = length or open_model(model)[1].graph.model.max_length
    return held_out_windows(documents, encode, size, windows, "within")
