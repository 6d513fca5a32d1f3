"""Run one peer and leave ``peer.json`` and ``weights.safetensors`` in a folder for each seed.

python -m bench.peers autoround --model examples/tiny-llada --seed 0 1 2 --out bench/out/autoround
    --option iters=200
"""

import argparse
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from bench.common.samples import calibration_states
from qdc.errors import QdcError

from . import PEERS
from .result import load, save


def main(arguments: list[str] | None = None) -> int:
    """Return 0, or 1 after an error that a user can act on."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("peer", choices=sorted(PEERS))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, required=True, help="gets one folder for each seed")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int)
    parser.add_argument("--prefix", type=float, default=0)
    parser.add_argument(
        "--tokens", type=Path, help="masked samples under 'tokens' in a .safetensors file"
    )
    parser.add_argument("--option", type=_option, action="append", default=[], metavar="KEY=JSON")
    given = parser.parse_args(arguments)
    try:
        for seed in given.seed:
            _run(given, seed, given.out / f"seed{seed}")
    except QdcError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _run(given: argparse.Namespace, seed: int, folder: Path) -> None:
    samples = (
        calibration_states(
            given.model, seed, samples=given.samples, length=given.length, prefix=given.prefix
        ).tokens
        if given.tokens is None
        else load_file(given.tokens)["tokens"]
    )
    quantize = import_module(f".{PEERS[given.peer]}", __package__).quantize
    save(quantize(given.model, samples, seed, **dict(given.option)), folder)
    found = load(folder)
    load_average = ", ".join(f"{part:.1f}" for part in os.getloadavg())
    print(
        f"{found.name} {found.version} seed {seed}: {found.effective_bits:.3f} bits, "
        f"{found.seconds:.0f} s on {torch.get_num_threads()} threads, load {load_average}"
    )


def _option(text: str) -> tuple[str, Any]:
    """Split ``key=value``; what is no JSON is text."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise argparse.ArgumentTypeError(f"found {text!r}, need key=value")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


if __name__ == "__main__":
    sys.exit(main())
