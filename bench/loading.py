"""What comparing digests costs: seconds to load an artifact with and without it.

    python -m bench.loading
    python -m bench.loading --gigabytes 1 --dtype bf16

The embedded model is compiled and loaded, alternately with and without digests, and so is a random
artifact of about as many gigabytes as asked for, in the shapes of LLaDA-8B with fewer regions; its
weights in bf16 take seven times as much memory. `--packed` loads them through transformers as well,
which decodes nothing: there the digests weigh most.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from torch import nn

import qdc
from bench.common.artifacts import regions_of, write_random
from bench.common.markdown import table
from bench.common.processes import EMBEDDED
from qdc.artifact.digests import Digests
from qdc.ir.tensors import torch_dtype

WIDTH, HIDDEN, VOCABULARY, BLOCK = 4096, 12288, 2048, 128
ATTENTION = ("q_proj", "k_proj", "v_proj", "attn_out")
Loader = Callable[[Path, bool], nn.Module]


def main() -> int:
    """Measure and print a table."""
    given = _parser().parse_args()
    dtype = torch_dtype(given.dtype)

    def load(folder: Path, verify: bool) -> nn.Module:
        return qdc.load(folder, dtype=dtype, verify=verify)

    loaders: dict[str, Loader] = {"qdc.load": load}
    if given.packed:
        loaders["transformers"] = _packed
    rows: list[tuple[object, ...]] = []
    with tempfile.TemporaryDirectory(prefix="loading-", dir=given.folder) as scratch:
        out = Path(scratch) / "embedded"
        qdc.compile(EMBEDDED, "data-free", out=out, write_report=False)
        for name, loader in loaders.items():
            loader(out, True)  # what Python loads late
            rows.append(("embedded", name, *_measure(loader, out, given.repeats)))
        if given.gigabytes:
            out = write_random(Path(scratch) / "random", regions_of(given.gigabytes))
            for name, loader in loaders.items():
                rows.append((f"random, {given.dtype}", name, *_measure(loader, out, given.large)))
    head = ("artifact", "by", "MB", "s without", "with", "more", "CPU s without", "with", "more",
            "hashing alone")  # fmt: skip
    print(table(head, rows, left=2))
    return 0


def _measure(loader: Loader, out: Path, repeats: int) -> tuple[str, ...]:
    """Megabytes; medians without and with digests, by the clock and of the processor; hashing."""
    size = sum(path.stat().st_size for path in out.iterdir())
    for path in out.iterdir():
        path.read_bytes()  # from the page cache: a disk would hide what hashing costs
    seconds: dict[bool, list[float]] = {False: [], True: []}
    busy: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * repeats):
        verify = bool((number + number // 2) % 2)  # who comes first takes turns
        gc.collect()
        begun, worked = time.perf_counter(), time.process_time()
        loader(out, verify)
        seconds[verify].append(time.perf_counter() - begun)
        busy[verify].append(time.process_time() - worked)
    digests = Digests.of(out)
    worked = time.process_time()
    digests.check(digests.listed or ())
    alone = time.process_time() - worked
    return f"{size / 1e6:.0f}", *_compared(seconds), *_compared(busy), f"{alone:.3f}"


def _compared(seconds: dict[bool, list[float]]) -> tuple[str, str, str]:
    plain, compared = (statistics.median(seconds[verify]) for verify in (False, True))
    return f"{plain:.3f}", f"{compared:.3f}", f"{100 * (compared / plain - 1):+.1f} %"


def _packed(folder: Path, verify: bool) -> nn.Module:
    from transformers import AutoModel
    from transformers.utils import logging

    import qdc.hf

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    qdc.hf.verify_files(verify)
    try:
        model: nn.Module = AutoModel.from_pretrained(folder)
    finally:
        qdc.hf.verify_files()
    return model


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench.loading", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=0, help="of a random artifact")
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "f16", "f32"))
    parser.add_argument("--repeats", type=int, default=15, help="of the embedded model, each way")
    parser.add_argument("--large", type=int, default=3, help="of the random artifact, each way")
    parser.add_argument("--folder", type=Path, help="where the artifacts are written")
    parser.add_argument("--packed", action="store_true", help="also through transformers")
    return parser


if __name__ == "__main__":
    sys.exit(main())
