"""Random artifacts in the shapes of LLaDA-8B, with fewer regions: what counts is what they cost."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdc.artifact.config import FORMAT_VERSION, GUARD, QUANTIZATION
from qdc.artifact.writer import CONFIG, ArtifactWriter
from qdc.checkpoint.compiled import METHOD
from qdc.format.codec import Codec
from qdc.format.multibinary import MultiBinary
from qdc.format.uniformgrid import UniformGrid
from qdc.ir.keys import file_key

from .checkpoint import configuration
from .processes import EMBEDDED

WIDTH, HIDDEN, VOCABULARY, BLOCK = 4096, 12288, 2048, 128
ATTENTION = ("q_proj", "k_proj", "v_proj", "attn_out")


def regions_of(gigabytes: float) -> int:
    """Regions whose planes and scales are about so large."""
    region = sum(codec.nbytes for _, codec in _layers(0))
    return max(1, round(gigabytes * 1e9 / region))


def write_random(out: Path, regions: int, packed_vocabulary: int | None = None) -> Path:
    """Write an artifact of random planes and scales of order 2; region by region, sealed.

    Args:
        out: its folder.
        regions: of the model.
        packed_vocabulary: rows of an embedding and a head of 8 bits; a small vocabulary in bf16 if
            not given.
    """
    writer = ArtifactWriter(out)
    generator = torch.Generator().manual_seed(0)
    layers: dict[str, dict[str, Any]] = {}

    def stored(path: str, codec: Codec) -> dict[str, Tensor]:
        layers[path] = {"codec": codec.name, **codec.model_dump(mode="json")}
        return {
            file_key(path, suffix): _random(suffix, [*map(int, kind.shape)], codec, generator)
            for suffix, kind in codec.specification().items()
        }

    for number in range(regions):
        tensors: dict[str, Tensor] = {}
        for path, codec in _layers(number):
            tensors |= stored(path, codec)
        for norm in ("attn_norm", "ff_norm"):
            tensors[f"model.transformer.blocks.{number}.{norm}.weight"] = torch.ones(WIDTH)
        writer.shard(f"model-{number + 1:05d}-of-{regions + 1:05d}.safetensors", tensors)
    rest = {"model.transformer.ln_f.weight": torch.ones(WIDTH)}
    for name in ("wte", "ff_out"):
        path = f"model.transformer.{name}"
        if packed_vocabulary is None:
            noise = torch.randn((VOCABULARY, WIDTH), generator=generator)
            rest[f"{path}.weight"] = noise.bfloat16()
        else:
            rows = packed_vocabulary
            rest |= stored(path, UniformGrid(rows=rows, columns=WIDTH, group=WIDTH, bits=8))
    writer.shard(f"model-{regions + 1:05d}-of-{regions + 1:05d}.safetensors", rest)
    writer.index()
    vocabulary = packed_vocabulary or VOCABULARY
    config = configuration(regions=regions, width=WIDTH, hidden=HIDDEN, vocabulary=vocabulary)
    quantization = {
        "quant_method": METHOD, "format_version": FORMAT_VERSION, "frontend": "fx",
        "layers": layers,
    }  # fmt: skip
    writer.json(CONFIG, {**config, **GUARD, QUANTIZATION: quantization})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(EMBEDDED / name, writer.folder / name)
    writer.seal()
    writer.commit()
    return out


def _layers(number: int) -> Iterator[tuple[str, MultiBinary]]:
    shapes = dict.fromkeys(ATTENTION, (WIDTH, WIDTH))
    shapes |= dict.fromkeys(("ff_proj", "up_proj"), (HIDDEN, WIDTH)) | {"ff_out": (WIDTH, HIDDEN)}
    for name, (rows, columns) in shapes.items():
        codec = MultiBinary(
            rows=rows, columns=columns, block=BLOCK, orders=(2,) * (columns // BLOCK)
        )
        yield f"model.transformer.blocks.{number}.{name}", codec


def _random(suffix: str, shape: list[int], codec: Codec, generator: torch.Generator) -> Tensor:
    if suffix == "orders" and isinstance(codec, MultiBinary):
        return torch.tensor(codec.orders, dtype=torch.uint8)
    if suffix in ("planes", "codes"):
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return torch.rand(shape, generator=generator).half() * 0.01
