"""HQQ: half-quadratic fit of scale and zero point to the weights alone, without samples.

Library: mobiusml/hqq, Apache-2.0. The zero point is no integer and is stored beside the scale.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.common.clocks import Stopwatch

from .pair import dense_weights, open_pair
from .result import Grid, PeerResult, grid_result, require

INSTALL = "pip install --no-deps hqq==0.2.8.post1 && pip install einops termcolor"
DEFAULTS: dict[str, Any] = {"nbits": 2, "group_size": 128, "axis": 1}


def quantize(model_folder: Path, samples: Tensor, seed: int, **options: Any) -> PeerResult:
    """Quantize the linears of every block; ``samples`` and ``seed`` change nothing.

    ``options`` go to the library's ``Quantizer.quantize`` and replace ``DEFAULTS``.

    Raises:
        MissingLibrary: hqq is not installed.
        QdcError: the weights left the library's format.
    """
    library = require("hqq", INSTALL)
    quantizer = require("hqq.core.quantize", INSTALL).Quantizer
    given = DEFAULTS | options
    pair = open_pair(model_folder, samples[:2])
    dense = dense_weights(pair.native, pair.paths)
    with Stopwatch() as watch:
        weights = {name: _fitted(quantizer, weight, given) for name, weight in dense.items()}
    return grid_result(
        "hqq",
        library.__version__,
        weights,
        Grid(given["nbits"], given["group_size"], zero_bits=16, flat=True),
        watch,
        options=given,
        notes=("no samples are used: every seed gives the same weights",),
    )


def _fitted(quantizer: Any, weight: Tensor, options: dict[str, Any]) -> Tensor:
    codes, meta = quantizer.quantize(weight, device="cpu", bitpack=False, **options)
    # Fitted in f32 on a CPU; rounded here to the fp16 that is stored and counted.
    for part in ("scale", "zero"):
        meta[part] = meta[part].half().float()
    found: Tensor = quantizer.dequantize(codes, meta | {"compute_dtype": torch.float32})
    return found
