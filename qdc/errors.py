"""Errors that a user can act on: what is wrong, where, and what to do instead.

Anything that is not a ``QdcError`` is a bug of ours. The command line prints a ``QdcError`` without
a traceback and exits with 1; a bug prints its traceback and exits with 2.
"""

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher, get_close_matches
from typing import ClassVar

SHOWN = 12
LONGEST_TEXT, LONGEST_PLACE = 4000, 300
"""Characters of a message, and of one name in it, that are shown: names may be a stranger's."""


class QdcError(Exception):
    """A mistake in the input, not in qdc; subclasses name the cause and carry its code."""

    code: ClassVar[str] = "QDC100"

    def __init__(self, what: str, *, where: Sequence[str] = (), help: str = "") -> None:
        """Keep the parts apart: ``what`` happened, ``where`` (names of layers, files), ``help``."""
        super().__init__(what)
        self.what = what
        self.where = tuple(where)
        self.help = help

    def __str__(self) -> str:
        """Lay the parts out over up to three lines."""
        lines = [f"error[{self.code}] {_shortened(self.what, LONGEST_TEXT)}"]
        if self.where:
            more = f" and {len(self.where) - SHOWN} more" if len(self.where) > SHOWN else ""
            places = (_shortened(place, LONGEST_PLACE) for place in self.where[:SHOWN])
            lines.append(f"  at    {', '.join(places)}{more}")
        if self.help:
            lines.append(f"  help  {_shortened(self.help, LONGEST_TEXT)}")
        return printable("\n".join(line.rstrip() for line in "\n".join(lines).split("\n")))


class UnknownName(QdcError):
    """A name that no registry, option list or choice knows."""

    code = "QDC101"


class DuplicateName(QdcError):
    """Two owners claim one name."""

    code = "QDC102"


class InvalidPipeline(QdcError):
    """Pipeline text that does not parse, or an option value that its pass refuses."""

    code = "QDC103"


class MissingAnnotation(QdcError):
    """A pass reads an annotation that nothing before it provides."""

    code = "QDC201"


class InvalidGraph(QdcError):
    """A layer graph that breaks an invariant."""

    code = "QDC202"


class InvalidDump(QdcError):
    """An IR dump that is damaged, hostile, or newer than this qdc."""

    code = "QDC203"


class InvalidText(QdcError):
    """Text of the IR that cannot be read back, or contradicts itself; the line and its mistake."""

    code = "QDC204"


class MissingWeights(QdcError):
    """A pass asks for weights, tensors or calibration text where there is nothing but a dump."""

    code = "QDC205"


class UnsupportedModel(QdcError):
    """A model family, variant or structure that qdc does not compile."""

    code = "QDC301"


class InvalidCheckpoint(QdcError):
    """A checkpoint whose files, tensors or values are not what its configuration says."""

    code = "QDC302"


class InvalidCalibration(QdcError):
    """Calibration text that is missing, unreadable or too short."""

    code = "QDC303"


class OrderOutOfRange(QdcError):
    """A binary order that no kernel, packer or fit supports."""

    code = "QDC310"


class NotPositiveDefinite(QdcError):
    """A second moment that damping could not make invertible."""

    code = "QDC311"


class NotFinite(QdcError):
    """Logits of a model, or their derivatives, that are infinite or not a number."""

    code = "QDC312"


class InvalidArtifact(QdcError):
    """An artifact that is damaged, incomplete or newer than this qdc."""

    code = "QDC401"


class OutputExists(QdcError):
    """An output folder that is already there."""

    code = "QDC402"


class InvalidJournal(QdcError):
    """The journal of an interrupted compile that is damaged, or of other inputs or options."""

    code = "QDC403"


class ExportDiffers(QdcError):
    """An exported checkpoint that is not the artifact it was made from."""

    code = "QDC420"


def printable(text: str) -> str:
    """Text that steers no terminal: control and other invisible characters as escapes."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} ..."


FARTHER = 0.25
"""How much less alike than the closest a name may be that is still offered."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known names are close to ``name``, or list some; a text for ``help``.

    Names that are much less close than the closest are left out.
    """
    names = sorted(known)
    longer = [known for known in names if name and known.startswith(f"{name}-")]
    near = get_close_matches(name, names, 3, 0.5)
    likeness = [SequenceMatcher(None, name, other).ratio() for other in near]
    near = [n for n, ratio in zip(near, likeness, strict=True) if ratio > likeness[0] - FARTHER]
    close = [*longer, *(n for n in near if n not in longer)][:3]
    if close:
        return f"did you mean {' or '.join(close)}?"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"known: {', '.join(names[:SHOWN])}{more}" if names else "none is known"
