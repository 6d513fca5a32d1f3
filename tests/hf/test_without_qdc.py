"""Transformers alone: it refuses an artifact, and loads what ``qdc export`` has written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import qdc
import qdc.hf
from tests.hf.conftest import Artifacts
from tests.support.commands import python
from tests.support.handovers import PACKED, auto_class, batch, logits

KINDS = {"bert": PACKED, "llama": PACKED, "qwen3-moe": PACKED}
SCRIPT = """
import json, sys
import torch, transformers

folder = sys.argv[1]
batch = torch.load(f"{folder}/batch.pt", weights_only=True)
found = {}
for name, kind in json.loads(sys.argv[2]).items():
    try:
        auto = getattr(transformers, kind)
        model = auto.from_pretrained(f"{folder}/{name}", dtype=torch.float32)
        torch.save(model(**batch).logits.detach(), f"{folder}/{name}.pt")
        found[name] = "loaded"
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"
assert "qdc" not in sys.modules
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def alone(artifacts: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dense exports and artifacts, and what a process without qdc makes of them."""
    folder = tmp_path_factory.mktemp("alone")
    kinds: dict[str, Any] = {}
    for kind, passes in KINDS.items():
        artifact = artifacts(kind, passes)
        qdc.export(artifact, out=folder / f"dense-{kind}", dtype="f32", verify=True)
        (folder / f"packed-{kind}").symlink_to(artifact)
        for name in ("dense", "packed"):
            kinds[f"{name}-{kind}"] = auto_class(kind).__name__
    loaded = auto_class("bert").from_pretrained(folder / "packed-bert")
    loaded.save_pretrained(folder / "packed-again")
    kinds |= {"packed-again": "AutoModelForMaskedLM", "packed-llama": "AutoModel"}
    torch.save(batch(), folder / "batch.pt")
    done = python("-c", SCRIPT, folder, json.dumps(kinds))
    assert done.returncode == 0, done.stderr
    (folder / "found.json").write_text(done.stdout.splitlines()[-1], encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", [*KINDS, "again"])
def test_an_artifact_is_refused_with_what_to_do(alone: Path, name: str) -> None:
    """Random weights would be the alternative: transformers only warns of an unknown method."""
    found = json.loads((alone / "found.json").read_text(encoding="utf-8"))
    assert found[f"packed-{name}"].startswith("ValueError")
    assert "import qdc.hf before from_pretrained" in found[f"packed-{name}"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_dense_export_gives_the_logits_of_the_artifact(
    alone: Path, artifacts: Artifacts, kind: str
) -> None:
    found = json.loads((alone / "found.json").read_text(encoding="utf-8"))
    assert found[f"dense-{kind}"] == "loaded"
    expected = logits(qdc.load(artifacts(kind, KINDS[kind]), backend="reference"))
    given = torch.load(alone / f"dense-{kind}.pt", weights_only=True)
    difference = float((given - expected).abs().max())
    assert difference <= 1e-5 * float(expected.abs().max())
