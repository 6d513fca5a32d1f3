"""The bytes of an artifact stay what they were: digests of the one that all tests share.

Files that no arithmetic decides have one digest everywhere. Sums of another kind of processor, or
of another version of torch, may end in other digits: there sizes alone are compared.
"""

import hashlib
import platform
from pathlib import Path

import pytest
import torch

from tests.conftest import Golden
from tests.support.embedded import embedded_artifact

COMPUTED = ("ir.qdc", ".safetensors", "qdc.sha256")


def machine() -> str:
    """What the last digits of a sum depend on."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    vendor = next((line.split(":")[1].strip() for line in lines if "vendor_id" in line), "")
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__} on {vendor or platform.processor()} with {instructions}"


def test_bytes_are_those_of_before(
    golden: Golden, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = embedded_artifact(tmp_path_factory)
    found = {path.name: path.read_bytes() for path in sorted(out.iterdir())}
    lines = [f"{n} {len(data)} {hashlib.sha256(data).hexdigest()}" for n, data in found.items()]
    if golden.update:
        golden("\n".join([machine(), *lines]))
        return
    recorded, *known = golden.path.read_text(encoding="utf-8").splitlines()
    same = recorded == machine()
    for expected, line in zip(known, lines, strict=True):
        name, size, _ = expected.split()
        whole = same or not name.endswith(COMPUTED)
        assert line.startswith(expected if whole else f"{name} {size} ")
    if not same:
        pytest.skip(f"digests of weights were recorded with {recorded}, this is {machine()}")
