"""The package ``gguf`` of llama.cpp's project, which writes the file: an optional extra."""

from typing import Any

from qdc.errors import QdcError


def gguf_package() -> Any:
    """The package. Raises ``QdcError`` where it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise QdcError(
            "the package gguf is not installed, which writes GGUF files",
            help="pip install 'qdc[gguf]'",
        ) from error
    return gguf
