"""The kernels that are compiled: each once a process, when a layer first asks for it."""

import functools
from collections.abc import Callable, Sequence

from .expand import Target
from .machine import Kernel, processor
from .ringlayout import Fields
from .support import features


@functools.cache
def lookup(bits: int, place: str) -> Kernel:
    """By tables, for planes of signs (0 bits) and codes of up to 4 bits."""
    from . import lookup as kind

    return _compiled(kind.OPERANDS, lambda module: kind.write(module, bits, place))


@functools.cache
def octets(place: str) -> Kernel:
    """By whole numbers, for codes of 8 bits."""
    from . import octets as kind

    fused = "avx512vnni" in features()
    return _compiled(kind.OPERANDS, lambda module: kind.write(module, place, fused))


@functools.cache
def expand(bits: int, place: str, vectors: int, target: Target) -> Kernel:
    """Weights written out, or multiplied as they come."""
    from . import expand as kind

    return _compiled(kind.OPERANDS, lambda module: kind.write(module, bits, place, vectors, target))


@functools.cache
def rings(fields: Fields, target: str) -> Kernel:
    """Rings of trellis codes written out, or multiplied as they come."""
    from . import ringreading
    from . import rings as kind

    return _compiled(ringreading.OPERANDS, lambda module: kind.write(module, fields, target))


@functools.cache
def whole_rings(fields: Fields) -> Kernel:
    """Rings of trellis codes multiplied by whole numbers."""
    from . import ringreading
    from . import wholerings as kind

    fused = "avx512vnni" in features()
    return _compiled(ringreading.OPERANDS, lambda module: kind.write(module, fields, fused))


@functools.cache
def rounding(piece: int, largest: float) -> Kernel:
    """Activations to whole numbers, by pieces of columns."""
    from . import rounding as kind

    return _compiled(kind.OPERANDS, lambda module: kind.write(module, piece, largest))


@functools.cache
def rotate(side: str) -> Kernel:
    """Random rotations of inputs, or of outputs."""
    from . import rotating as kind

    return _compiled(kind.OPERANDS, lambda module: kind.write(module, side))


def _compiled(operands: Sequence[str], write: Callable[[object], str]) -> Kernel:
    from .emitter import new_module, text_of

    module = new_module()
    name = write(module)
    return Kernel(processor().compile(text_of(module)), name, operands)
