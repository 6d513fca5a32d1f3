"""Put the dense weights that a library left into our own module, whose forward judges them all."""

from pathlib import Path

from torch import Tensor, nn

import qdc
from qdc.errors import QdcError
from qdc.frontend.select import holder


def with_weights(model_folder: Path, weights: dict[str, Tensor]) -> nn.Module:
    """The original model under other ``weights``, by layer path.

    Raises QdcError if a weight has no place in the model or another shape.
    """
    module = qdc.load_original(model_folder)
    inside = holder(module)
    state = inside.state_dict()
    wrong = [
        name
        for name, weight in weights.items()
        if f"{name}.weight" not in state or state[f"{name}.weight"].shape != weight.shape
    ]
    if wrong:
        raise QdcError("weights have no place in the model", where=wrong)
    new = {f"{name}.weight": weight.float() for name, weight in weights.items()}
    inside.load_state_dict(new, strict=False)
    return module
