"""Checkpoints that published modelling code was run on, with the logits that it gave."""

import json
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).parents[1] / "fixtures" / "published"
PUBLISHED = sorted(path.name for path in FIXTURES.iterdir() if path.is_dir())
SHARED_WEIGHTS = {"llada-moe-norm": "llada-moe", "llada2-block8": "llada2"}
"""Fixtures whose weights are those of another."""


def config_of(name: str) -> dict[str, Any]:
    """``config.json`` of a fixture, under the fields of the published class."""
    text = (FIXTURES / name / "config.json").read_text(encoding="utf-8")
    config: dict[str, Any] = json.loads(text)
    return config


def kept_rows(name: str, length: int, kept: int) -> slice:
    """The positions of which a fixture holds logits: those of a canvas, or every n-th."""
    canvas = "canvas_length" in config_of(name)
    return slice(length - kept, None) if canvas else slice(None, None, length // kept)


def write_published(folder: Path, name: str) -> Path:
    """Write the checkpoint of a fixture and return its folder."""
    weights = FIXTURES / SHARED_WEIGHTS.get(name, name) / "model.safetensors"
    (folder / "config.json").write_text(json.dumps(config_of(name)), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(weights.read_bytes())
    return folder
