"""How a checkpoint shows that it is quantized already, by qdc or by others."""

from qdc.checkpoint.folder import Checkpoint
from qdc.errors import InvalidCheckpoint

METHOD = "qdc"
"""``quant_method`` in the ``quantization_config`` of an artifact."""


def refuse_compiled(source: Checkpoint) -> None:
    """Raise ``InvalidCheckpoint`` if the checkpoint is quantized already."""
    settings = source.config.get("quantization_config")
    if settings is not None:
        method = settings.get("quant_method") if isinstance(settings, dict) else None
        what = (
            "a qdc artifact" if method == METHOD else f"quantized already, by {method or 'others'}"
        )
        raise InvalidCheckpoint(
            f"the model is {what}, not a full-precision checkpoint",
            where=[str(source.folder)],
            help="give the checkpoint that it was made from",
        )
