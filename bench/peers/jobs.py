"""Work for a library: quantize the model on our samples, under the library's own interpreter."""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from qdc.comparing.jobs import Setup
from qdc.comparing.work import Work
from qdc.errors import QdcError

from . import PEERS

SEEDLESS = ("hqq",)
"""Libraries that read no samples: one seed is all."""


def library_work(
    shared: Setup,
    name: str,
    peer: str,
    options: Mapping[str, Any],
    seed: int | None,
    python: Path,
    *,
    drawn: Mapping[str, str] | None = None,
    text: str = "",
    mark: str = "",
) -> Work:
    """The work, whose digest holds the library's defaults too.

    Args:
        shared: by all jobs.
        name: of the case.
        peer: in ``bench.peers``.
        options: other than the defaults.
        seed: of the samples.
        python: interpreter of the libraries.
        drawn: options of the samples.
        text: digest of the calibration text, where it is one of several.
        mark: keeps apart what is equal but for how it is run.

    Raises:
        QdcError: there is no such interpreter.
    """
    if not python.is_file():
        raise QdcError(f"no interpreter at {python}, see bench/README.md")
    told = dict(drawn or {})
    defaults = import_module(f"bench.peers.{PEERS[peer]}").DEFAULTS
    return shared.other(
        name,
        f"{peer} {json.dumps({**defaults, **options, **told}, sort_keys=True)}",
        seed=seed,
        calibration=shared.calibrating,
        text=text,
        extra={"peer": peer, "options": dict(options), "python": str(python), "drawn": told},
        mark=mark,
    )
