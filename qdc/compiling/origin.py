"""What an artifact is made from: for its configuration, and for the journal of its compile."""

from importlib.metadata import version

import torch

from qdc.artifact.journal import DEFAULTS, PIPELINE
from qdc.checkpoint.folder import Checkpoint
from qdc.compiling.collect import full_text
from qdc.compiling.job import Job
from qdc.frontend.select import choose
from qdc.streaming.calibration import Calibration
from qdc.text.records import Fields
from qdc.version import __version__


def facts(
    job: Job, calibration: Calibration | None, digest: str, checkpoint: Checkpoint
) -> dict[str, object]:
    """What the artifact's configuration says of its origin."""
    source = None if calibration is None else calibration.source
    return {
        "qdc_version": __version__,
        "pipeline": str(job.plan),
        "frontend": choose(checkpoint.config, job.front_end, job.registry.families),
        "backend": str(job.backend),
        "checkpoint_sha256": digest,
        "states": job.options.states,
        "calibration": source
        and {"name": source.name, "sha256": source.digest, "fields": _fields(job.options.fields)},
        "plugins": job.registry.plugins,
    }


def identity(
    job: Job, calibration: Calibration | None, digest: str, checkpoint: Checkpoint
) -> dict[str, str]:
    """All that the artifact's bytes depend on, by names that a user knows.

    Sums are split differently on another number of threads, and on a device of another kind.
    """
    found = {
        "qdc": __version__,
        "torch": torch.__version__,
        PIPELINE: str(job.plan),
        DEFAULTS: full_text(job.plan),
        "frontend": choose(checkpoint.config, job.front_end, job.registry.families),
        "backend": str(job.backend),
        "states": job.options.states,
        "device": torch.device(job.device).type,
        "threads": str(torch.get_num_threads()),
        "checkpoint": f"sha256:{digest}",
    }
    if found["frontend"] == "export":
        found["transformers"] = version("transformers")  # the graph is that of its code
    if calibration is not None:
        source = calibration.source
        found["calibration"] = f"{source.name} sha256:{source.digest}"
        found["fields"] = " ".join(_fields(job.options.fields))
    for name, sha256 in checkpoint.tokenizer_digests().items():
        found[name] = f"sha256:{sha256}"
    if job.registry.plugins:
        found["plugins"] = ", ".join(job.registry.plugins)
    return found


def _fields(fields: Fields) -> list[str]:
    """Fields of the records that were read."""
    return list(fields.chat or (fields.text,))
