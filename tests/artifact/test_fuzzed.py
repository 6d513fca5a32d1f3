"""Mutations of the bench, chosen and shrunk by hypothesis: each artifact loads or is refused."""

import shutil
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import qdc
from bench.fuzz.kinds import DUMP, KINDS
from qdc.errors import QdcError
from qdc.ir.dump import read
from qdc.ir.printer import render
from qdc.pipeline.registry import standard_registry
from tests.support.artifacts import unsealed

ARTIFACT = (
    "config values", "layers", "model", "index", "index values", "shard headers", "shard tensors",
)  # fmt: skip
TAGS = standard_registry().annotations()
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]


@settings(max_examples=70, suppress_health_check=QUIET)
@given(kind=st.sampled_from(ARTIFACT), chance=st.randoms(use_true_random=False))
def test_an_artifact_loads_or_is_refused(
    kind: str, chance: Random, artifact: Path, tmp_path: Path
) -> None:
    folder = fresh(artifact, tmp_path)
    KINDS[kind].damage(folder, chance)
    try:
        found, refusal = qdc.load(folder), ""
    except QdcError as error:
        found, refusal = None, str(error)
    assert refusal.startswith("error[QDC") is (found is None)


@settings(max_examples=70, suppress_health_check=QUIET)
@given(chance=st.randoms(use_true_random=False))
def test_a_dump_is_shown_or_refused(chance: Random, artifact: Path, tmp_path: Path) -> None:
    folder = fresh(artifact, tmp_path)
    KINDS["dump graphs"].damage(folder, chance)
    try:
        text, refusal = render(read(folder / DUMP, TAGS)), ""
    except QdcError as error:
        text, refusal = "", str(error)
    assert refusal.startswith("error[QDC") is (not text)


@pytest.mark.parametrize("kind", [*ARTIFACT, "dump graphs", "dump bombs", "config bytes"])
def test_one_seed_gives_one_mutation(kind: str, artifact: Path, tmp_path: Path) -> None:
    """A failure that the bench reports can be made again."""
    found = []
    for _ in range(2):
        folder = fresh(artifact, tmp_path)
        KINDS[kind].damage(folder, Random(3))
        found.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert found[0] == found[1]


def fresh(artifact: Path, folder: Path) -> Path:
    shutil.rmtree(folder / "copy", ignore_errors=True)
    return unsealed(artifact, folder / "copy")
