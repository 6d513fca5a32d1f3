"""The package ``gguf`` of llama.cpp's project, which writes the file: an optional extra."""

from typing import Any

from qdc.errors import QdcError
from qdc.version import install


def gguf_package() -> Any:
    """The package. Raises ``QdcError`` where it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise QdcError(
            "the package gguf is not installed, which writes GGUF files",
            help=install("gguf"),
        ) from error
    return gguf
