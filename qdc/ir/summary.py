"""Annotations of which only the line is known that the text prints."""

from typing import ClassVar

from pydantic import Field

from qdc.ir.annotation import Annotation


class Summary(Annotation):
    """The line of an annotation whose other facts the text leaves out: printed again, never read.

    The text shows four digits of a number and the extremes of a list. What is missing is not made
    up: a pass that reads the annotation is told that it is not there.
    """

    tag: ClassVar[str] = "summary"
    on: ClassVar[tuple[str, ...]] = ()
    of: str = Field(pattern=r"^\S+$", max_length=64)
    """Tag of the annotation."""
    place: str = Field(min_length=1)
    """The slot that the annotation fills."""
    line: str
    """What stands after the tag."""

    @property
    def fills(self) -> str:
        """The slot of the annotation itself: one takes the place of the other."""
        return self.place

    def text(self) -> str:
        """The line as it was read."""
        return self.line
