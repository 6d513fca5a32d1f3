"""What is to be known of a compile for a forecast of it."""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BeforeValidator, model_validator

from qdc.errors import QdcError
from qdc.ir.text_use import Pack
from qdc.options import Options, option, switch
from qdc.planning.effort import EFFORTS, Level, as_level
from qdc.runtime.options import Device, Plugins
from qdc.streaming.memory import states_memory, statistics_memory
from qdc.text.options import AroundTexts, Calibration, ChatFields, TextField, read_fields
from qdc.text.records import DEFAULT_FIELD, Fields
from qdc.units import parse_size

States = Literal["bf16", "f32"]
MOST_RANKS = 1 << 16
RATES = 3
"""Products in fp32 and in fp64, and the memory: importing what they are brings torch along."""
OVERRIDES = ("samples", "length", "pack", "isolate", "geometry", "seed")
"""Options that go to every pass that has them."""


def _states(name: Any) -> Any:
    if name not in get_args(States):
        raise QdcError(f"calibration states cannot be held in {name!r}", help="known: bf16, f32")
    return name


def _size(option: str) -> BeforeValidator:
    """Bytes that a user gives to this option."""
    return BeforeValidator(lambda given: None if given is None else parse_size(str(given), option))


def _count(given: Any) -> int:
    """Processes. Raises ``QdcError``."""
    text = str(given)
    if not text.isdecimal() or not 1 <= int(text) <= MOST_RANKS:
        raise QdcError(
            f"--ranks is no number of processes: {text!r}",
            help=f"write a number from 1 to {MOST_RANKS:,}",
        )
    return int(text)


def _rates(given: Any) -> tuple[float, float, float] | None:
    """Three rates. Raises ``QdcError``."""
    if given is None:
        return None
    parts = given.split(",") if isinstance(given, str) else list(map(str, given))
    found = [re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)([KMGTP]?)", part.strip()) for part in parts]
    rates = [float(each[1]) * 1000 ** " KMGTP".index(each[2] or " ") for each in found if each]
    if len(rates) != len(parts) or len(rates) != RATES or not all(rates):
        raise QdcError(
            f"--device-rate is not three rates: {given!r}",
            help="write operations a second in fp32 and in fp64, and bytes a second of the memory, "
            "as in 40T,20T,2T",
        )
    return rates[0], rates[1], rates[2]


class PlanOptions(Options):
    """Options that ``qdc plan`` and ``qdc compile`` share."""

    refusal: ClassVar[str] = "a compile cannot be asked for that"
    manual: ClassVar[str] = "qdc compile --help names the options"

    model_dir: Annotated[
        Path,
        option("MODEL", "Folder: config.json, shards or just their index", argument=True),
    ]
    passes: Annotated[str, option("TEXT", "Preset or pass{option=value},...")] = "default"
    effort: Annotated[
        Level,
        BeforeValidator(as_level),
        option(
            "NAME",
            "Time, memory: low | normal | high",
            more="low: default on 16 samples of 512 tokens, or of the model's longest; normal: the "
            "defaults; high: best on 256 samples. --passes, --samples, --length and the options of "
            "a pipeline win over it",
        ),
    ] = "normal"
    backend: Annotated[
        str,
        option("NAME", "Who writes the artifact", more="As name, or as name{option=value}"),
    ] = "reference"
    calibration: Calibration = None
    text_field: TextField = DEFAULT_FIELD
    chat_fields: ChatFields = None
    document_tokens: AroundTexts = "auto"
    samples: Annotated[
        int | None,
        option("N", "Sequences to calibrate on", more="For every pass that has this option"),
    ] = None
    length: Annotated[
        int | None,
        option("N", "Tokens of a sequence", more="For every pass that has this option"),
    ] = None
    pack: Annotated[
        Pack | None,
        option(
            "NAME",
            "Documents in a sequence: documents, within, pad",
            more="documents: joined, cut at its end; within: documents that are longer, alone; "
            "pad: one document each, the rest left out of all statistics. For every pass that has "
            "this option",
        ),
    ] = None
    isolate: Annotated[
        bool | None,
        switch(
            "Documents of a sequence do not see each other",
            more="For every pass that has this option",
        ),
    ] = None
    geometry: Annotated[
        str | None,
        option(
            "NAME",
            "Which tokens are masked: mcs, uniform, clean, ...",
            more="clean masks none, as for a model without mask token; block-diffusion, rollout "
            "and tmas are the others. Not given: mcs, and block-diffusion where attention goes by "
            "blocks (SDAR, LLaDA2, Fast-dLLM v2), and uniform-noise for canvases (DiffusionGemma). "
            "For every pass that has this option",
        ),
    ] = None
    states: Annotated[
        States,
        BeforeValidator(_states),
        option("DTYPE", "States held in memory: bf16, f32"),
    ] = "bf16"
    host_memory: Annotated[
        int | None,
        _size("--host-memory"),
        option(
            "SIZE",
            "Of those, above it on disk [default: half of all]",
            more="Bytes, as a number or as in 8G; what is above waits in files beside the artifact",
            verbatim=True,
        ),
    ] = None
    device_memory: Annotated[
        int | None,
        _size("--device-memory"),
        option(
            "SIZE",
            "For statistics of experts [default: a quarter]",
            more="Bytes, as a number or as in 8G, of the device's memory. Experts of a block are "
            "calibrated and lowered together, as many as this holds the moments of; what comes out "
            "does not depend on it",
            verbatim=True,
        ),
    ] = None
    device: Device = "cpu"
    plugins: Plugins = ()

    @model_validator(mode="after")
    def _records_are_read(self) -> Self:
        read_fields(self.calibration, self.text_field, self.chat_fields)
        return self

    @property
    def fields(self) -> Fields:
        """The fields of records that are read."""
        return Fields.parse(self.text_field, self.chat_fields)

    @property
    def states_limit(self) -> int:
        """Bytes of calibration states that stay in memory, as given or the usual share."""
        return states_memory() if self.host_memory is None else self.host_memory

    def statistics_limit(self, own: int | None) -> int:
        """Bytes that moments of experts may take together, as given or the usual share.

        Args:
            own: bytes of the device's own memory, None where it computes in the host's.
        """
        return statistics_memory(own) if self.device_memory is None else self.device_memory

    @property
    def pipeline(self) -> str:
        """The pipeline's text: as given, else that of the effort."""
        return self.passes if "passes" in self.model_fields_set else EFFORTS[self.effort].passes

    @property
    def settled(self) -> frozenset[str]:
        """What the user gave of all that an effort chooses."""
        named = {"passes"} & self.model_fields_set
        return frozenset(named | {n for n in ("samples", "length") if getattr(self, n) is not None})

    @property
    def overrides(self) -> dict[str, object]:
        """What goes to every pass that has an option of this name."""
        return {name: getattr(self, name) for name in OVERRIDES if name in type(self).model_fields}


class ForecastOptions(PlanOptions):
    """What ``qdc plan`` takes: a compile, and the machine that it is foreseen for."""

    manual: ClassVar[str] = "qdc plan --help names the options"

    model_dir: Annotated[
        Path,
        option(
            "MODEL",
            "Folder: config.json, shards or just their index; or artifact",
            argument=True,
        ),
    ]
    gpu: Annotated[
        str | None,
        option(
            "NAME",
            "A card elsewhere: h100, a100, 4090, ...",
            more="By its data sheet; nothing of it was measured",
            before="plugins",
        ),
    ] = None

    ranks: Annotated[
        int,
        BeforeValidator(_count),
        option(
            "N",
            "Processes that share the compile",
            more="One for each card, as torchrun starts them; memory is that of the first one",
            before="plugins",
        ),
    ] = 1
    device_rate: Annotated[
        tuple[float, float, float] | None,
        BeforeValidator(_rates),
        option(
            "RATES",
            "What the device does in a second: fp32,fp64,bytes",
            more="Operations in fp32 and in fp64, and bytes of its memory, as in 40T,20T,2T, in "
            "place of what is measured or what a data sheet says",
            before="plugins",
        ),
    ] = None

    @model_validator(mode="after")
    def _one_machine(self) -> Self:
        if self.gpu is not None and "device" in self.model_fields_set:
            raise QdcError(
                f"--device {self.device} is of this machine, and --gpu {self.gpu} of another",
                help="leave one of them out",
            )
        return self
