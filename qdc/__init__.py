"""qdc: a compiler that takes diffusion language models to a 2-bit average."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from qdc.api import compile, export, load, load_original
    from qdc.backendbase import Backend
    from qdc.codec import Codec, Lowered
    from qdc.errors import QdcError
    from qdc.ir.annotations import Annotation
    from qdc.models.family import Family
    from qdc.passbase import Pass
    from qdc.pipeline.unit import Unit
    from qdc.report import CompileReport

_HOME = {
    "compile": "qdc.api",
    "export": "qdc.api",
    "load": "qdc.api",
    "load_original": "qdc.api",
    "Annotation": "qdc.ir.annotations",
    "Backend": "qdc.backendbase",
    "Codec": "qdc.codec",
    "CompileReport": "qdc.report",
    "Family": "qdc.models.family",
    "Lowered": "qdc.codec",
    "Pass": "qdc.passbase",
    "QdcError": "qdc.errors",
    "Unit": "qdc.pipeline.unit",
}
__all__ = [
    "Annotation",
    "Backend",
    "Codec",
    "CompileReport",
    "Family",
    "Lowered",
    "Pass",
    "QdcError",
    "Unit",
    "compile",
    "export",
    "load",
    "load_original",
]


def __getattr__(name: str) -> Any:
    """Import the public names on first use: ``qdc --help`` must not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'qdc' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """Name what is public."""
    return sorted((*__all__, "__version__"))
