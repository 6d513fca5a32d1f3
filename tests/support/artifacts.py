"""Copies of artifacts that tests change."""

import shutil
from pathlib import Path

from qdc.artifact.digests import DIGESTS


def unsealed(artifact: Path, target: Path) -> Path:
    """Copy an artifact without its digests: whoever changes files on purpose leaves none."""
    shutil.copytree(artifact, target)
    (target / DIGESTS).unlink(missing_ok=True)
    return target
