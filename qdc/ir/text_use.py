"""What windows were made of, and what there was: counts for people, for JSON and for the report."""

from typing import Literal

from pydantic import Field

from qdc.ir.types import Frozen

Pack = Literal["documents", "within", "pad"]
"""How windows are made of documents for calibration."""
HeldOutPack = Literal["documents", "within"]
"""The same for evaluation, where no window is padded."""


class TextUse(Frozen):
    """What of a text is in the windows that were drawn of it."""

    pack: Literal["documents", "within", "pad", "records", "rows"]
    """How windows are made of documents; ``records`` of prompts and answers, unless padded;
    ``rows`` of token ids."""
    documents: int = Field(ge=0)
    """There were, or records of prompts and answers; those that hold nothing do not count."""
    characters: int | None = None
    """There were; None for prompts and answers, and for rows of token ids."""
    tokens: int = Field(ge=0)
    """There were, with what stands between documents."""
    counted: bool
    """Whether all tokens were counted; else their number is an estimate from those of the windows,
    or of the documents that were looked at."""
    used: int = Field(ge=0)
    """Documents of which at least a token is in a window."""
    windows: int = Field(ge=0)
    length: int = Field(ge=1)
    """Tokens of a window."""
    distinct: int = Field(ge=0)
    """Windows that differ from each other."""
    looked_at: int = 0
    """With ``within``, ``pad`` and of records: those that were tokenized to see whether they can be
    used."""
    unusable: int = 0
    """Of those: with ``within`` too short for a window, with ``pad`` without a token, of records
    without an answer."""
    cut: int = 0
    """With ``pad`` and of records: those of which a part fell out of a window."""
    padding: int = 0
    """Positions of the windows that hold no token."""
    isolated: bool = False
    """Whether attention stays within a document, or a record."""
    judged: bool = False
    """Whether the windows are for evaluation; else they are for calibration."""

    @property
    def of_records(self) -> bool:
        """Whether the text is prompts and answers."""
        return self.characters is None and self.pack != "rows"

    @property
    def kind(self) -> str:
        """What the text consists of."""
        return "records" if self.of_records else "rows" if self.pack == "rows" else "documents"

    @property
    def said(self) -> tuple[str, ...]:
        """In words: what there was, and what was made of it."""
        about = "" if self.counted else "about "
        there = (
            f"{self.documents:,} {self.kind} of {about}{self.tokens:,} tokens, {self.used:,} used"
        )
        if self.pack == "rows" and self.cut:
            there += f", {self.cut:,} cut"
        elif self.of_records or self.pack == "pad":
            lacking = "an answer" if self.of_records else "a token"
            there += f", {self.cut:,} cut, {self.unusable:,} without {lacking}"
        made = (
            f"pack={self.pack}: {self.windows:,} windows of {self.length:,} tokens, "
            f"{self.distinct:,} of them distinct"
        )
        if self.pack == "pad":
            made += f", {self.padding / (self.windows * self.length):.0%} padding"
        return there, made + (f", {self.kind} apart" if self.isolated else "")

    @property
    def notes(self) -> tuple[str, ...]:
        """What follows from sampling, and is nobody's fault; and what else there is to choose."""
        found = [self._unused] if self._unused and not self._half_unused else []
        short = self.documents * self.length > self.tokens
        if self.pack == "documents" and short and not self.judged:
            found.append(
                f"a document has about {self.tokens // max(1, self.documents):,} tokens, less than "
                "a window; if texts stand alone in use, pack=pad calibrates on each alone"
            )
        return tuple(found)

    @property
    def _unused(self) -> str:
        """How much is in no window by the draw alone; nothing if all is."""
        apart = self.pack in ("pad", "records", "rows")
        if self.pack == "within" or self.used >= self.documents:
            return ""
        needed = self.documents if apart else -(-self.tokens // self.length)
        return (
            f"{self.documents - self.used:,} of {self.documents:,} {self.kind} are in no window; "
            f"about {needed:,} windows hold all of the text"
        )

    @property
    def _half_unused(self) -> bool:
        """Whether the samples of a calibration leave out more than half of what there is."""
        return not self.judged and 2 * self.used < self.documents

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should change."""
        found, about = [], "" if self.counted else "about "
        if self._unused and self._half_unused:
            found.append(f"{self._unused}; raise samples")
        if self.pack == "within" and 2 * self.unusable > self.looked_at:
            found.append(
                f"{self.unusable:,} of {self.looked_at:,} documents are too short for pack=within, "
                f"which takes windows of {self.length:,} tokens from longer ones alone; "
                "use pack=documents, or a smaller length"
            )
        if self.of_records and 2 * self.unusable > self.looked_at:
            found.append(
                f"{self.unusable:,} of {self.looked_at:,} records have no answer and are left out; "
                "check --chat-fields"
            )
        if self.pack == "pad" and 2 * self.padding > self.windows * self.length:
            found.append(
                f"{self.padding / (self.windows * self.length):.0%} of the positions are padding, "
                "which is computed and thrown away; use a smaller length, or pack=documents"
            )
        if self.distinct < self.windows:
            found.append(
                f"{self.windows - self.distinct:,} of {self.windows:,} windows repeat others; "
                "give more text, or fewer windows"
            )
        if self.pack == "documents" and self.windows * self.length > self.tokens:
            found.append(
                f"the windows hold {self.windows * self.length:,} tokens and the text {about}"
                f"{self.tokens:,}: they overlap; give more text, or fewer windows"
            )
        return tuple(found)
