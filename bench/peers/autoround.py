"""AutoRound: learned rounding and clipping, block by block, by signed gradient descent.

Library: intel/auto-round, Apache-2.0; paper arXiv 2309.05516. Its uniform grid has a scale and an
integer zero point for each group of a row, the rounding offset of every weight and both ends of
every grid are trained against the block's full-precision output, on inputs from blocks that are
already quantized. All options are the library's defaults but those in ``DEFAULTS`` below.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.common.clocks import Stopwatch
from qdc.errors import QdcError
from qdc.text.tokenizer import load_tokenizer

from .pair import dense_weights, open_pair
from .result import Grid, PeerResult, grid_result, require
from .watch import BlockWatch

INSTALL = (
    "pip install --no-deps auto-round==0.16.1 accelerate && "
    "pip install datasets py-cpuinfo psutil requests tqdm  (see bench/README.md)"
)
DEFAULTS: dict[str, Any] = {
    "bits": 2,
    "group_size": 128,
    "sym": False,
    "iters": 200,
    "batch_size": 8,
    "amp": False,
}
"""``amp`` off computes in f32: on a CPU the library would cast model and targets to bf16."""


def quantize(model_folder: Path, samples: Tensor, seed: int, **options: Any) -> PeerResult:
    """Quantize the linears of every block on masked ``samples``, ``i64[N, length]``.

    ``options`` go to ``AutoRound`` and replace ``DEFAULTS``; ``seed`` is the seed of its batches.

    Raises:
        MissingLibrary: auto-round is not installed.
        QdcError: the library saw another function than ours, or left its format.
    """
    library = require("auto_round", INSTALL)
    given = DEFAULTS | options
    pair = open_pair(model_folder, samples[:2])
    tokenizer = load_tokenizer(model_folder)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(_unused(len(tokenizer), samples))
    # It hides the last position, which in a causal model no other one sees anyway.
    blocks = BlockWatch(pair, samples, last=not pair.causal)
    batches = list(torch.split(samples, given["batch_size"]))
    with Stopwatch() as watch:
        rounder = library.AutoRound(
            pair.native,
            tokenizer=tokenizer,
            scheme="W2A16",
            dataset=batches,
            seqlen=samples.shape[1],
            nsamples=len(samples),
            device_map="cpu",
            seed=seed,
            **given,
        )
        quantized, _ = rounder.quantize()
    note = blocks.finish()
    weights = dense_weights(quantized, pair.paths)
    return grid_result(
        "autoround",
        library.__version__,
        weights,
        Grid(given["bits"], given["group_size"], zero_bits=given["bits"]),
        watch,
        options={**given, "seed": seed, "nsamples": len(samples), "seqlen": samples.shape[1]},
        notes=(note, "the library leaves each sample's last position out of its loss"),
    )


def _unused(vocabulary: int, samples: Tensor) -> int:
    """Give a token that occurs in no sample, for the library to call padding.

    It leaves padding out of its loss, and the padding token of a model may end documents too, as
    it does in samples of joined ones. Without any it takes equal tokens at the end for padding,
    which masks often are. Raises QdcError if every token occurs.
    """
    seen = torch.zeros(vocabulary, dtype=torch.bool)
    seen[samples.flatten()] = True
    if bool(seen.all()):
        raise QdcError(
            "every token occurs in the samples, so that the library would leave some out of its "
            "loss as padding",
            help="benchmark with fewer samples",
        )
    return int(seen.int().argmin())
