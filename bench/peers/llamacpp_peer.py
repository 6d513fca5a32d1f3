"""llama.cpp's types, by its own quantizer, with an importance matrix of the samples.

Library: ggml-org/llama.cpp, MIT, in the wheel ``xllamacpp``; the package ``gguf`` decodes. Every
linear of the blocks is stored in one type. As its quantizer does, a matrix whose rows are no whole
blocks of that type gets another one, of more bits: all bytes are counted as they come out.
"""

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench.common.clocks import Stopwatch

from .pair import dense_weights, open_pair
from .result import PeerResult, require

INSTALL = "pip install --no-deps xllamacpp==2026.10.11549 gguf==0.19.0  (see bench/README.md)"
DEFAULTS: dict[str, Any] = {"type": "Q2_K", "padded": False}
BATCH = 8
FALLBACK = dict.fromkeys(
    ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "Q2_K", "Q3_K"), "IQ4_NL"
) | {"TQ1_0": "Q4_0", "TQ2_0": "Q4_0"}
"""What it takes where the columns are no whole blocks of a type, by that type."""


class Stored(NamedTuple):
    """A matrix after the way there and back."""

    dense: Tensor
    """``f32[rows, columns]``."""
    type: str
    nbytes: int


def quantize(model_folder: Path, samples: Tensor, seed: int, **options: Any) -> PeerResult:
    """Quantize the linears of every block; of ``samples`` it reads mean squares of inputs.

    Of ``options``, ``type`` is one of ggml's, and ``padded`` fills rows up with zeros in the place
    of another type, which llama.cpp itself does not do; the zeros are counted. ``seed`` changes
    nothing but the samples.

    Raises:
        MissingLibrary: xllamacpp or gguf is not installed.
    """
    library, gguf = require("xllamacpp", INSTALL), require("gguf", INSTALL)
    given = DEFAULTS | options
    pair = open_pair(model_folder, samples[:2])
    dense = dense_weights(pair.native, pair.paths)
    with Stopwatch() as watch:
        importance = mean_squares(pair.native, samples, pair.paths)
        engine = open_engine(library)
        stored = {
            name: there_and_back(
                engine, gguf, weight, importance[name], given["type"], padded=given["padded"]
            )
            for name, weight in dense.items()
        }
    total = sum(weight.numel() for weight in dense.values())
    bits = 8 * sum(each.nbytes for each in stored.values()) / total
    return PeerResult(
        name="llamacpp",
        version=f"xllamacpp {library.__version__}",
        weights={name: each.dense for name, each in stored.items()},
        effective_bits=bits,
        code_bits=bits,
        seconds=watch.seconds,
        processor_seconds=watch.processor,
        options={**given, "nsamples": len(samples), "seqlen": samples.shape[1]},
        notes=(
            types_note(stored, dense, given["type"]),
            watch.note(),
            "counted: every byte of the blocks, scales included, as code bits too",
        ),
    )


def types_note(stored: Mapping[str, Stored], dense: Mapping[str, Tensor], wanted: str) -> str:
    """Which share of the weights is stored in which type."""
    total = sum(weight.numel() for weight in dense.values())
    shares: dict[str, int] = {}
    for name, each in stored.items():
        shares[each.type] = shares.get(each.type, 0) + dense[name].numel()
    said = ", ".join(f"{count / total:.0%} {name}" for name, count in shares.items())
    return f"types of the weights: {said}; wanted {wanted}"


@torch.no_grad()
def mean_squares(native: nn.Module, samples: Tensor, paths: Mapping[str, str]) -> dict[str, Tensor]:
    """Mean square of each input of a linear, ``f32[columns]`` by our path: its importance."""
    sums: dict[str, Tensor] = {}
    hooks = []
    for theirs, ours in paths.items():

        def look(_: nn.Module, inputs: tuple[Tensor, ...], key: str = ours) -> None:
            square = inputs[0].flatten(0, -2).double().square().sum(0)
            sums[key] = sums[key] + square if key in sums else square

        hooks.append(native.get_submodule(theirs).register_forward_pre_hook(look))
    for part in samples.split(BATCH):
        native(part)
    for hook in hooks:
        hook.remove()
    return {name: (total / samples.numel()).float() for name, total in sums.items()}


def there_and_back(
    engine: Any,
    gguf: Any,
    weight: Tensor,
    importance: Tensor,
    wanted: str,
    *,
    padded: bool = False,
) -> Stored:
    """Store ``f32[rows, columns]`` in a type, or in what stands for it, and decode the bytes."""
    rows, columns = weight.shape
    kind = gguf.GGMLQuantizationType[wanted]
    if columns % gguf.GGML_QUANT_SIZES[kind][0]:
        if padded:
            missing = -columns % gguf.GGML_QUANT_SIZES[kind][0]
            weight = nn.functional.pad(weight, (0, missing))
            importance = nn.functional.pad(importance, (0, missing))
        else:
            kind = gguf.GGMLQuantizationType[FALLBACK[wanted]]
    width, nbytes = gguf.GGML_QUANT_SIZES[kind]
    target = np.zeros((rows, weight.shape[1] // width * nbytes), np.uint8)
    source = np.ascontiguousarray(weight.float().numpy())
    weights = np.ascontiguousarray(importance.float().numpy())
    pointers = [each.ctypes.data_as(ctypes.c_void_p) for each in (source, target, weights)]
    engine.ggml_quantize_chunk.restype = ctypes.c_size_t
    written = engine.ggml_quantize_chunk(
        ctypes.c_int(kind.value), pointers[0], pointers[1], ctypes.c_int64(0),
        ctypes.c_int64(rows), ctypes.c_int64(source.shape[1]), pointers[2],
    )  # fmt: skip
    assert written == target.nbytes
    found = gguf.quants.dequantize(target, kind)[:, :columns]
    return Stored(torch.from_numpy(np.array(found, np.float32)), kind.name, target.nbytes)


def open_engine(library: Any) -> Any:
    """The functions of its shared library."""
    (path,) = Path(library.__path__[0]).glob("xllamacpp*.so")
    return ctypes.CDLL(str(path))
