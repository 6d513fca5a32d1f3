"""Peak memory of a compile at a given width, for models of several depths, beside the prediction.

    python bench/memory.py --regions 2 4

Builds a random LLaDA checkpoint of LLaDA-8B's width (4096, 12288) for each depth, compiles it on
the CPU with 8 samples of 256 tokens in a process of its own, and prints peak resident memory,
seconds, and what ``qdc plan`` predicts. Weights are random bf16, on whose values memory does not
depend. The vocabulary is small, so that the disk is spared; with its true size (``--vocabulary
126464``) embedding and head are part of the measurement.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import qdc

TOKENIZER = Path(__file__).parents[1] / "examples" / "tiny-llada" / "tokenizer.json"
HEAD_WIDTH = 128
GIB = 1 << 30


def build(folder: Path, regions: int, width: int, hidden: int, vocabulary: int) -> None:
    """Write a random checkpoint, a shard for each region."""
    folder.mkdir(parents=True)
    heads = width // HEAD_WIDTH
    config = {
        "architectures": ["LLaDAModelLM"],
        "d_model": width,
        "n_layers": regions,
        "n_heads": heads,
        "mlp_hidden_size": hidden,
        "vocab_size": vocabulary,
        "embedding_size": vocabulary,
        "max_sequence_length": 4096,
        "mask_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copyfile(TOKENIZER, folder / TOKENIZER.name)
    shapes = {"attn_norm": (width,), "ff_norm": (width,), "ff_out": (width, hidden)}
    shapes |= dict.fromkeys(("q_proj", "k_proj", "v_proj", "attn_out"), (width, width))
    shapes |= dict.fromkeys(("ff_proj", "up_proj"), (hidden, width))
    generator = torch.Generator().manual_seed(0)
    weight_map: dict[str, str] = {}

    def write(number: int, parts: dict[str, tuple[int, ...]]) -> None:
        name = f"model-{number + 1:05}-of-{regions + 1:05}.safetensors"
        tensors = {key: random(shape, generator) for key, shape in parts.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))

    for region in range(regions):
        prefix = f"model.transformer.blocks.{region}"
        write(region, {f"{prefix}.{leaf}.weight": shape for leaf, shape in shapes.items()})
    matrix = (vocabulary, width)
    outside = {"wte": matrix, "ln_f": (width,), "ff_out": matrix}
    write(regions, {f"model.transformer.{leaf}.weight": shape for leaf, shape in outside.items()})
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Gains near 1, matrices whose outputs are as large as their inputs, bf16."""
    noise = torch.randn(shape, generator=generator)
    return (1 + 0.1 * noise if len(shape) == 1 else noise / shape[-1] ** 0.5).to(torch.bfloat16)


def compile_alone(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Compile in a fresh process."""
    out = model.with_name(f"{model.name}-compiled")
    command = [
        sys.executable, __file__, "--one", str(model), "--out", str(out),
        "--passes", options.passes, "--samples", options.samples, "--length", options.length,
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    shutil.rmtree(out)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def predict(model: Path, options: argparse.Namespace) -> int:
    """What ``qdc plan`` says of the host's memory, asked in a fresh process as a user does."""
    command = [
        sys.executable, "-m", "qdc", "plan", str(model), "--passes", options.passes,
        "--samples", options.samples, "--length", options.length, "--device", "cpu", "--json",
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    return int(json.loads(done.stdout)["host"]["nbytes"])


def one(options: argparse.Namespace) -> None:
    """The process that compiles: what it measured, as JSON."""
    report = qdc.compile(
        options.one,
        options.passes,
        out=options.out,
        samples=options.samples,
        length=options.length,
        write_report=False,
    )
    passes = {row.name: (row.seconds, row.peak_bytes) for row in report.passes}
    print(json.dumps({"peak": report.peak_bytes, "seconds": report.seconds, "passes": passes}))


def main() -> None:
    """Build, compile, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("bench/out/memory"))
    parser.add_argument("--regions", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=12288)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--passes", default="default")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options)
        return
    peaks: list[int] = []
    for regions in options.regions:
        model = options.folder / f"{options.width}-{options.hidden}-{regions}"
        if not model.exists():
            build(model, regions, options.width, options.hidden, options.vocabulary)
        predicted = predict(model, options)
        found = compile_alone(model, options)
        peaks.append(found["peak"])
        print(
            f"{regions} regions   peak {found['peak'] / GIB:.2f} GiB   predicted "
            f"{predicted / GIB:.2f} GiB ({predicted / found['peak']:.3f} of it)   "
            f"{found['seconds']:.0f} s"
        )
        for name, (seconds, peak) in found["passes"].items():
            print(f"    {name:<16} {seconds:8.1f} s   {peak / GIB:6.2f} GiB", flush=True)
    print(f"deepest over shallowest {peaks[-1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()
