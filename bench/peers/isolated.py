"""Run a peer in another interpreter, whose environment has the library."""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from qdc.errors import QdcError

from . import PEERS
from .result import PeerResult, load

ROOT = Path(__file__).parents[2]


def quantize(
    python: Path, peer: str, model_folder: Path, samples: Tensor, seed: int, **options: Any
) -> PeerResult:
    """Run ``peer`` under the interpreter ``python`` and return what it found.

    Arguments as for the peer's own ``quantize``; ``options`` must be what JSON can hold. The
    environment is inherited, ``OMP_NUM_THREADS`` with it.

    Raises:
        QdcError: the name is unknown, or the other side failed; its last lines are in the message.
    """
    if peer not in PEERS:
        raise QdcError(f"no peer is called {peer!r}", help=f"one of {', '.join(sorted(PEERS))}")
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.safetensors"
        save_file({"tokens": samples.contiguous()}, tokens)
        command = [
            str(python), "-m", "bench.peers", peer, "--model", str(model_folder.resolve()),
            "--seed", str(seed), "--out", folder, "--tokens", str(tokens),
        ]  # fmt: skip
        for key, value in options.items():
            command += ["--option", f"{key}={json.dumps(value)}"]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if done.returncode:
            last = "\n".join(done.stderr.strip().splitlines()[-12:])
            raise QdcError(
                f"{peer} failed under {python}, exit status {done.returncode}:\n{last}",
                help="install the library there, see bench/README.md",
            )
        return load(Path(folder) / f"seed{seed}")
