"""The journal of a compile: what is finished, and the digests of what it was made from and of.

It is one JSON file beside the artifact in the making, replaced as a whole after every step. It is
untrusted when it is read: names lead nowhere, sizes are bounded, and a file counts only if it has
the digest that stands here.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from qdc.disk import digest_of, read_regular, replace_bytes
from qdc.errors import InvalidJournal
from qdc.ir.calibration_use import SampledStates, TokenCertainty
from qdc.ir.text_use import TextUse
from qdc.ir.types import Frozen
from qdc.jsontext import UnfitJson, check_size

JOURNAL, VERSION = "journal.json", 1
PIPELINE, DEFAULTS = "pipeline", "pipeline with defaults"
LARGEST = 1 << 28
DISCARD = "discard it with --restart"
PLAIN = r"^[A-Za-z0-9_][\w.\-]*$"


class File(Frozen):
    """A finished file and what is in it."""

    name: str = Field(pattern=PLAIN, max_length=255)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @classmethod
    def of(cls, path: Path) -> "File":
        """The file as it is now."""
        return cls(name=path.name, sha256=digest_of(path))

    def is_whole(self, folder: Path) -> bool:
        """Whether the folder holds it, byte for byte."""
        return digest_of(folder / self.name) == self.sha256


class StreamState(Frozen):
    """Where a calibration stream stood at the end of a step."""

    place: int = Field(ge=0)
    """Of its pass in the plan."""
    original: bool
    """Whether it goes through the original model."""
    stops: tuple[int, ...]
    """Every place at which it held values on the way, so that the way can be gone again."""
    left: int = Field(ge=0)
    calls: int = Field(ge=0)
    routed: int = Field(ge=0)
    batches: tuple[File, ...] = ()
    """Its values; of the last step alone."""
    samples: File | None = None
    """The samples of all processes, where each has values of its part of the batches alone."""
    most: int | None = Field(default=None, ge=1)
    """Samples of the largest batch that the device could hold; None if all fitted."""


class Entry(Frozen):
    """One finished step."""

    step: str
    written: tuple[File, ...] = ()
    """Files of the artifact."""
    tensors: tuple[File, ...] = ()
    """What later passes read."""
    graph: File | None = None
    """The graph after it; of the last step, and of the last of each segment."""
    streams: tuple[StreamState, ...] = ()

    def kept(self) -> Iterator[File]:
        """All its files that are not the artifact's."""
        yield from self.tensors
        if self.graph is not None:
            yield self.graph
        for stream in self.streams:
            yield from stream.batches
            if stream.samples is not None:
                yield stream.samples


class PassRecord(Frozen):
    """What the meter knows of one pass."""

    seconds: float = Field(ge=0, allow_inf_nan=False)
    peak_bytes: int = Field(ge=0)
    units: int = Field(ge=0)


class Journal(Frozen):
    """All that a compile needs to go on from where it was."""

    format: Literal["qdc-journal"] = "qdc-journal"
    version: int = VERSION
    run: str = Field(default="", pattern=r"^([0-9a-f]{32})?$")
    """Of a compile of several processes, each of which has a journal: what they have in common."""
    identity: dict[str, str]
    """What the bytes of the artifact depend on, by the names that a user knows."""
    total: int = Field(ge=0)
    """Steps of the whole compile."""
    entries: tuple[Entry, ...] = Field(min_length=1)
    linear_calls: float = Field(ge=0, allow_inf_nan=False)
    samples: int = Field(ge=0)
    text: tuple[TextUse, ...] = ()
    """What windows were made of until then."""
    sampled: tuple[SampledStates, ...] = ()
    """What states were taken of trajectories until then."""
    certainty: tuple[TokenCertainty, ...] = ()
    """What confidence tokens were weighed by until then."""
    passes: tuple[PassRecord, ...]
    remarks: tuple[str, ...]
    seconds: float = Field(ge=0, allow_inf_nan=False)
    resumed: int = Field(ge=0)
    """How many times the compile was taken up again."""

    @property
    def progress(self) -> str:
        """``5 of 9 steps are done, the last is blocks.1``."""
        done = len(self.entries)
        return f"{done} of {self.total} steps are done, the last is {self.entries[-1].step[:80]}"

    def changes(self, identity: Mapping[str, str]) -> list[str]:
        """What is another now: ``threads: 2 -> 1``; defaults only where the text says nothing."""
        names = [*self.identity, *(name for name in identity if name not in self.identity)]
        if self.identity.get(PIPELINE) != identity.get(PIPELINE):
            names = [name for name in names if name != DEFAULTS]
        return [
            f"{name}: {self.identity.get(name, 'none')} -> {identity.get(name, 'none')}"
            for name in names
            if self.identity.get(name) != identity.get(name)
        ]

    def write(self, folder: Path, name: str = JOURNAL) -> None:
        """Replace the journal of a folder, atomically. Raises ``QdcError``."""
        replace_bytes(folder / name, (self.model_dump_json(indent=1) + "\n").encode())


def damaged_journal(where: Path, why: str) -> InvalidJournal:
    """The error that says what is wrong with a journal, or with what it names."""
    what = f"the journal of the interrupted compile is damaged: {why}"
    return InvalidJournal(what, where=[str(where)], help=DISCARD)


def read_journal(folder: Path, name: str = JOURNAL) -> Journal | None:
    """Read the journal of a folder; None if it has none.

    Raises:
        InvalidJournal: it is damaged, hostile, or newer than this qdc.
    """
    path = folder / name
    if not path.exists() and not path.is_symlink():
        return None
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST:
            raise InvalidJournal("the journal is no journal", where=[str(path)], help=DISCARD)
        data = read_regular(path, LARGEST)
        check_size(data)
        journal = Journal.model_validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise damaged_journal(path, f"{place} {first['msg']}".rstrip()) from error
    except UnfitJson as error:
        raise InvalidJournal(f"the journal {error}", where=[str(path)], help=DISCARD) from error
    except (OSError, RecursionError) as error:
        raise InvalidJournal(
            "the journal of the interrupted compile cannot be read", where=[str(path)], help=DISCARD
        ) from error
    if journal.version != VERSION or len(journal.entries) > journal.total:
        raise InvalidJournal(
            f"the journal has version {journal.version}, this qdc reads {VERSION}"
            if journal.version != VERSION
            else "the journal has more entries than steps",
            where=[str(path)],
            help=DISCARD,
        )
    return journal
