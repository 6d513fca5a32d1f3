"""Run a peer in another interpreter, whose environment has the library."""

import json
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from bench.common.processes import Failed, answer, environment
from qdc.errors import QdcError

from . import PEERS
from .result import PeerResult, load


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
            python, "-m", "bench.peers", peer, "--model", model_folder.resolve(),
            "--seed", seed, "--out", folder, "--tokens", tokens,
        ]  # fmt: skip
        for key, value in options.items():
            command += ["--option", f"{key}={json.dumps(value)}"]
        try:
            answer(command, environment(inherit=False))
        except Failed as error:
            raise QdcError(
                f"{peer} failed under {python}, {error}",
                help="install the library there, see bench/README.md",
            ) from error
        return load(Path(folder) / f"seed{seed}")
