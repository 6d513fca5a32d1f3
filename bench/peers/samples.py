"""The samples of ``calibrate-mcs``, for anyone who asks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from qdc.frontend.opening import open_model
from qdc.passes.calibrate_mcs import CalibrateMcs
from qdc.streaming.workspace import Calibration
from qdc.text.source import read_text
from qdc.text.tokenizer import encoder, load_tokenizer


def masked_samples(
    model_folder: Path, seed: int, text: Path | None = None, **options: Any
) -> Tensor:
    """Return ``i64[samples, length]``, what the pass draws from ``text`` with these ``options``.

    The embedded text if none is given. Rollouts need a running compile and are not to be had here.
    """
    drawer = CalibrateMcs(seed=seed, **options)
    source = Calibration(read_text(text), encoder(load_tokenizer(model_folder)))
    graph = open_model(model_folder)[1].graph
    drawer.check(graph)
    # All that drawing reads of a unit, rollouts apart.
    unit: Any = SimpleNamespace(calibration=lambda: source, model=graph.model)
    return drawer.draw(unit).tokens
