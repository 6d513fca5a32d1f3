"""qdc: a compiler that takes diffusion language models to a 2-bit average."""

from typing import TYPE_CHECKING, Any

from qdc.version import __version__ as __version__

if TYPE_CHECKING:
    from qdc.api import compare, compile, export, load, load_original
    from qdc.comparing.options import CompareOptions
    from qdc.comparing.table import CompareResult
    from qdc.compiling.options import CompileOptions
    from qdc.errors import QdcError
    from qdc.exporting.options import ExportOptions
    from qdc.format.codec import Codec, Lowered
    from qdc.ir.annotation import Annotation
    from qdc.models.family import Family
    from qdc.pipeline.backendbase import Backend
    from qdc.pipeline.passbase import Pass
    from qdc.report.model import CompileReport
    from qdc.streaming.unit import Unit

_HOME = {
    "compare": "qdc.api",
    "compile": "qdc.api",
    "export": "qdc.api",
    "load": "qdc.api",
    "load_original": "qdc.api",
    "Annotation": "qdc.ir.annotation",
    "Backend": "qdc.pipeline.backendbase",
    "Codec": "qdc.format.codec",
    "CompareOptions": "qdc.comparing.options",
    "CompareResult": "qdc.comparing.table",
    "CompileOptions": "qdc.compiling.options",
    "CompileReport": "qdc.report.model",
    "ExportOptions": "qdc.exporting.options",
    "Family": "qdc.models.family",
    "Lowered": "qdc.format.codec",
    "Pass": "qdc.pipeline.passbase",
    "QdcError": "qdc.errors",
    "Unit": "qdc.streaming.unit",
}
__all__ = [
    "Annotation",
    "Backend",
    "Codec",
    "CompareOptions",
    "CompareResult",
    "CompileOptions",
    "CompileReport",
    "ExportOptions",
    "Family",
    "Lowered",
    "Pass",
    "QdcError",
    "Unit",
    "compare",
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
