"""What is attacked: a random artifact that gives NaN for prompts with one token, and its server."""

import json
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

import qdc
from bench.common.checkpoint import build
from bench.common.processes import environment

from .kinds import HOT, KEYS, MOST_BODY

VOCABULARY = 2048


def make(folder: Path) -> Path:
    """Write the artifact. One channel is 0 but for a token, of which a norm makes infinity."""
    model = build(folder / "model", regions=1, width=128, hidden=128, vocabulary=VOCABULARY)
    for path in model.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if name.endswith("wte.weight"):
                tensor[:, 0] = 0
                tensor[HOT, 0] = 8
            if name.endswith("blocks.0.attn_norm.weight"):
                tensor[0] = 3e38
        save_file(tensors, path, {"format": "pt"})
    qdc.compile(model, "rtn-lower,pack", out=folder / "hot", write_report=False)
    return folder / "hot"


def start(model: Path) -> tuple["subprocess.Popen[str]", int]:
    """Serve it; gives the process, and the port. Its errors go to a file beside the model."""
    (model.parent / "keys").write_text("\n".join(KEYS), encoding="utf-8")
    options = ("--port", "0", "--json", "--batch", "1", "--max-body", str(MOST_BODY),
               "--timeout", "5", "--api-key-file", str(model.parent / "keys"))  # fmt: skip
    with (model.parent / "errors").open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "qdc", "serve", str(model), *options],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment(threads=1),
        )
    assert process.stdout is not None
    lines = ""
    while not lines.endswith("}\n"):
        line = process.stdout.readline()
        if not line:
            sys.exit(f"the server ended with status {process.wait()} before it was ready")
        lines += line
    return process, int(json.loads(lines)["url"].rpartition(":")[2])
