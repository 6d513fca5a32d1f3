"""GPTQ: column by column rounding with error feedback through the inverse second moment.

Library: vllm-project/llm-compressor, Apache-2.0; paper arXiv 2210.17323. A uniform grid with a
scale and an integer zero point for each group of a row; blocks in sequence, each on inputs from
blocks that are already quantized.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bench.common.clocks import Stopwatch
from qdc.text.tokenizer import load_tokenizer

from .pair import dense_weights, open_pair
from .result import Grid, PeerResult, grid_result, require
from .watch import BlockWatch

INSTALL = (
    "pip install --no-deps llmcompressor==0.14.0.1 compressed-tensors==0.19.0 && "
    "pip install datasets loguru  (see bench/README.md)"
)
BATCH = 8
DEFAULTS: dict[str, Any] = {"bits": 2, "group_size": 128, "observer": "memoryless_minmax"}


def quantize(model_folder: Path, samples: Tensor, seed: int, **options: Any) -> PeerResult:
    """Quantize the linears of every block on masked ``samples``, ``i64[N, length]``.

    Of ``options``, ``bits``, ``group_size`` and ``observer`` describe the grid and all others go to
    the library's ``GPTQModifier``; ``observer="memoryless_mse"`` searches the clip range.

    Raises:
        MissingLibrary: llm-compressor is not installed.
        QdcError: the library saw another function than ours, or left its format.
    """
    library = require("llmcompressor", INSTALL)
    modifiers = require("llmcompressor.modifiers.gptq", INSTALL)
    schemes = require("compressed_tensors.quantization", INSTALL)
    given = DEFAULTS | options
    pair = open_pair(model_folder, samples[:2])
    grid = schemes.QuantizationArgs(
        num_bits=given["bits"],
        symmetric=False,
        strategy="group",
        group_size=given["group_size"],
        observer=given["observer"],
        scale_dtype=torch.float16,
    )
    scheme = schemes.QuantizationScheme(targets=["Linear"], weights=grid)
    rest = {k: v for k, v in given.items() if k not in DEFAULTS}
    recipe = modifiers.GPTQModifier(config_groups={"all": scheme}, ignore=["lm_head"], **rest)
    # A loader of our own: from a plain data set the library draws samples in another order.
    parts = torch.split(samples, BATCH)
    batches: Any = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in parts]
    loader = DataLoader(batches, batch_size=None)
    blocks = BlockWatch(pair, samples)
    torch.manual_seed(seed)
    with Stopwatch() as watch, tempfile.TemporaryDirectory() as folder:
        # The library looks up whether the model on disk is compressed already.
        pair.native.config.save_pretrained(folder)
        pair.native.config.name_or_path = folder
        library.oneshot(
            model=pair.native,
            processor=load_tokenizer(model_folder),
            dataset=loader,
            recipe=recipe,
            batch_size=BATCH,
            num_calibration_samples=len(samples),
            max_seq_length=samples.shape[1],
            shuffle_calibration_samples=False,
        )
    note = blocks.finish()
    weights = dense_weights(pair.native, pair.paths)
    return grid_result(
        "gptq",
        f"llmcompressor {library.__version__}",
        weights,
        Grid(given["bits"], given["group_size"], zero_bits=given["bits"]),
        watch,
        options={**given, "seed": seed, "nsamples": len(samples), "seqlen": samples.shape[1]},
        notes=(note,),
    )
