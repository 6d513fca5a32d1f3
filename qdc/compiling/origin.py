"""What an artifact is made from: for its configuration, and for the journal of its compile."""

from importlib.metadata import version

import torch

from qdc.artifact.journal import DEFAULTS, PIPELINE
from qdc.checkpoint.folder import Checkpoint
from qdc.compiling.collect import full_text
from qdc.compiling.job import Job
from qdc.streaming.calibration import Calibration
from qdc.text.records import Fields
from qdc.text.source import TextSource
from qdc.version import __version__


def facts(
    job: Job,
    calibration: Calibration | None,
    digest: str,
    checkpoint: Checkpoint,
    *,
    causal: bool = False,
) -> dict[str, object]:
    """What the artifact's configuration says of its origin."""
    source = None if calibration is None else calibration.source
    asked = job.options.document_tokens
    return {
        "qdc_version": __version__,
        "pipeline": str(job.plan),
        "frontend": job.frontend(checkpoint),
        **({"causal": True} if causal else {}),
        "backend": str(job.backend),
        "checkpoint_sha256": digest,
        "states": job.options.states,
        "calibration": source
        and {
            "name": source.name,
            "sha256": source.digest,
            "fields": _fields(job.options.fields, source),
        },
        "plugins": job.registry.plugins,
        **({} if asked == "auto" else {"document_tokens": asked}),
    }


def identity(
    job: Job, calibration: Calibration | None, digest: str, checkpoint: Checkpoint
) -> dict[str, str]:
    """All that the artifact's bytes depend on, by names that a user knows.

    Sums are split differently on another number of threads, on a device of another kind or
    another card, and by other vector instructions.
    """
    device = torch.device(job.device)
    on_card = device.type == "cuda"
    found = {
        "qdc": __version__,
        "torch": torch.__version__,
        PIPELINE: str(job.plan),
        DEFAULTS: full_text(job.plan),
        "frontend": job.frontend(checkpoint),
        "backend": str(job.backend),
        "states": job.options.states,
        "document-tokens": job.options.document_tokens,
        "device": device.type,
        **({"card": torch.cuda.get_device_name(device)} if on_card else {}),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "checkpoint": f"sha256:{digest}",
    }
    if found["frontend"] == "export":
        found["transformers"] = version("transformers")  # the graph is that of its code
    if calibration is not None:
        source = calibration.source
        found["calibration"] = f"{source.name} sha256:{source.digest}"
        found["fields"] = " ".join(_fields(job.options.fields, source))
    for name, sha256 in checkpoint.tokenizer_digests().items():
        found[name] = f"sha256:{sha256}"
    if job.registry.plugins:
        found["plugins"] = ", ".join(job.registry.plugins)
    return found


def _fields(fields: Fields, source: TextSource) -> list[str]:
    """Fields of the records that were read; token ids have none."""
    return [] if source.rows is not None else list(fields.chat or (fields.text,))
