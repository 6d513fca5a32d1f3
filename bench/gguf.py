"""Files of equal bytes: ours against llama.cpp's own quantizer with an importance matrix.

    python -m bench.gguf --seeds 0 1 2 --samples 128

Its quantizer is called in the engine's library (the wheel ``xllamacpp``), tensor by tensor with the
types of its file, as its command line does. The importance matrix holds the mean square of each
input of a layer in the original model, once over the visible text of our samples, as its own tool
would see it, and once over the masked samples themselves. Both files hold the same types, so they
have the same bytes; the gap is the rise of the masked cross-entropy on held-out text at ratio 0.5.
"""

import argparse
import ctypes
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import qdc
from bench.common.markdown import table
from bench.common.processes import EMBEDDED
from bench.common.samples import calibration_states, held_out
from qdc.evaluation.evaluate import BATCH, SEEDS
from qdc.evaluation.masked_loss import masked_sums, ratio_mask
from qdc.format.codec import Codec
from qdc.format.ggml import Ggml
from qdc.frontend.opening import open_model
from qdc.pipeline.registry import standard_registry
from qdc.runtime.load import open_artifact

RATIO = 0.5
PRESETS = {"Q2_K": "gguf", "Q3_K": "gguf-q3", "TQ2_0": "gguf-ternary"}
IQ2_XXS = 16
"""Its number among ggml's types: vectors of a lattice in the bytes of TQ2_0."""
Moments = Mapping[str, Tensor]


class Row(NamedTuple):
    """One type and seed: gaps in nats a token."""

    kind: str
    seed: int
    nbytes: int
    ours: float
    visible: float
    masked: float
    lattice: float | None = None
    """Of IQ2_XXS, which has the bytes of TQ2_0: its vectors with the masked matrix."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gguf", description=__doc__)
    parser.add_argument("--model", type=Path, default=EMBEDDED)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--types", nargs="+", choices=sorted(PRESETS), default=list(PRESETS))
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--windows", type=int, default=48)
    given = parser.parse_args(arguments)
    engine = _engine()
    original, mask = qdc.load_original(given.model), _mask(given.model)
    windows = held_out(given.model, given.windows)
    base = _loss(original, windows, mask)
    rows: list[Row] = []
    for seed in given.seeds:
        states = calibration_states(given.model, seed, samples=given.samples, length=given.length)
        visible = _moments(original, states.clean)
        masked = _moments(original, states.tokens)
        for kind in given.types:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "out"
                qdc.compile(
                    given.model,
                    PRESETS[kind],
                    out=out,
                    seed=seed,
                    samples=given.samples,
                    length=given.length,
                    write_report=False,
                )
                codecs = open_artifact(out, standard_registry()).codecs
                ours = _loss(qdc.load(out), windows, mask) - base
            theirs = [
                _loss(_quantized(engine, given.model, codecs, moments), windows, mask) - base
                for moments in (visible, masked)
            ]
            if kind == "TQ2_0":
                peer = _quantized(engine, given.model, codecs, masked, lattice=True)
                theirs.append(_loss(peer, windows, mask) - base)
            nbytes = sum(codec.nbytes for codec in codecs.values())
            rows.append(Row(kind, seed, nbytes, ours, *theirs))
            print(rows[-1], file=sys.stderr, flush=True)
    print(f"loss of the original {base:.4f}; load {os.getloadavg()[0]:.1f}\n")
    print(_table(rows))
    return 0


def _table(rows: list[Row]) -> str:
    lines = []
    for kind in dict.fromkeys(row.kind for row in rows):
        of = [row for row in rows if row.kind == kind]
        columns = [[getattr(row, name) for row in of] for name in Row._fields[3:]]
        means = [None if None in values else statistics.fmean(values) for values in columns]
        ratio = means[0] / min(mean for mean in means[1:] if mean is not None)
        cells = ["" if mean is None else f"{mean:.4f}" for mean in means]
        lines.append([kind, str(len(of)), f"{of[0].nbytes:,}", *cells, f"{ratio:.2f}"])
    titles = ["type", "seeds", "bytes", "ours", "its, visible", "its, masked", "IQ2_XXS, masked",
              "ours / its best"]  # fmt: skip
    return table(titles, lines)


def _loss(model: nn.Module, windows: Tensor, mask: int) -> float:
    """Masked cross-entropy in nats a token."""
    masks = [ratio_mask(len(windows), windows.shape[1], RATIO, seed) for seed in SEEDS]
    parts = [masked_sums((model,), windows, m, mask, BATCH, lambda: None) for m in masks]
    total = sum(float(part.losses[0].sum()) for part in parts)
    return total / sum(float(part.tokens.sum()) for part in parts)


def _mask(model: Path) -> int:
    mask = open_model(model)[1].graph.model.mask_token_id
    assert mask is not None
    return mask


@torch.no_grad()
def _moments(model: nn.Module, tokens: Tensor) -> Moments:
    """Mean square of each input of every linear: llama.cpp's importance matrix."""
    sums: dict[str, Tensor] = {}
    hooks = []
    for name, linear in model.named_modules():
        if isinstance(linear, nn.Linear):

            def look(_: nn.Module, inputs: tuple[Tensor, ...], key: str = name) -> None:
                square = inputs[0].flatten(0, -2).double().square().sum(0)
                sums[key] = sums.get(key, 0) + square

            hooks.append(linear.register_forward_pre_hook(look))
    for part in tokens.split(BATCH):
        model(part)
    for hook in hooks:
        hook.remove()
    return {name: (total / tokens.numel()).float() for name, total in sums.items()}


def _quantized(
    engine: Any,
    folder: Path,
    codecs: Mapping[str, Codec],
    moments: Moments,
    *,
    lattice: bool = False,
) -> nn.Module:
    """The original with every layer as llama.cpp's quantizer writes it in the same type.

    With ``lattice`` the layers of the blocks are IQ2_XXS instead.
    """
    model = qdc.load_original(folder)
    for path, codec in codecs.items():
        assert isinstance(codec, Ggml)
        weight = model.get_submodule(path).weight
        # Its files have no importances for the vocabulary either.
        inside = "blocks" in path
        if lattice and inside:
            weight.data = _lattice(engine, weight.data, moments[path])
            continue
        blocks = quantize_rows(engine, weight.data, codec, moments[path] if inside else None)
        weight.data = codec.dense({"blocks": blocks})
    return model


def quantize_rows(engine: Any, weight: Tensor, codec: Ggml, importance: Tensor | None) -> Tensor:
    """What llama.cpp makes of a weight: ``u8[rows, bytes of a row]``."""
    source = np.ascontiguousarray(weight.float().numpy())
    target = np.zeros((codec.rows, codec.row_bytes), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance.numpy())
    name = codec.type.replace("_K", "_k").lower().replace("_k", "_K")
    function = getattr(engine, f"quantize_{name}")
    function.restype = ctypes.c_size_t
    written = function(
        source.ctypes.data_as(ctypes.c_void_p),
        target.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(codec.rows),
        ctypes.c_int64(codec.columns),
        None if weights is None else weights.ctypes.data_as(ctypes.c_void_p),
    )
    assert written == target.nbytes
    return torch.from_numpy(target)


def _lattice(engine: Any, weight: Tensor, importance: Tensor) -> Tensor:
    """A weight in llama.cpp's IQ2_XXS and back, ``f32[rows, columns]``."""
    rows, columns = weight.shape
    source = np.ascontiguousarray(weight.float().numpy())
    target = np.zeros(rows * columns // 256 * 66, np.uint8)
    found = np.zeros((rows, columns), np.float32)
    weights = np.ascontiguousarray(importance.numpy())
    pointers = [each.ctypes.data_as(ctypes.c_void_p) for each in (source, target, weights, found)]
    engine.ggml_quantize_chunk.restype = ctypes.c_size_t
    written = engine.ggml_quantize_chunk(
        IQ2_XXS, pointers[0], pointers[1], ctypes.c_int64(0), ctypes.c_int64(rows),
        ctypes.c_int64(columns), pointers[2],
    )  # fmt: skip
    assert written == target.nbytes
    engine.dequantize_row_iq2_xxs(pointers[1], pointers[3], ctypes.c_int64(found.size))
    return torch.from_numpy(found)


def _engine() -> Any:
    import xllamacpp

    (path,) = Path(xllamacpp.__path__[0]).glob("xllamacpp*.so")
    return ctypes.CDLL(str(path))


if __name__ == "__main__":
    sys.exit(main())
