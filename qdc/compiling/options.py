"""What a compile may be asked for: the options of ``qdc.compile`` and of ``qdc compile``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Required, Self, TypedDict

from pydantic import BeforeValidator, model_validator

from qdc.errors import InvalidPipeline
from qdc.options import PathLike, as_list, option, switch
from qdc.planning.options import PlanOptions

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


class CompileOptions(PlanOptions):
    """Everything that a user says of a compile. Frozen; refuses what contradicts itself."""

    positional: ClassVar[tuple[str, ...]] = ("model_dir", "passes", "backend")

    model_dir: Annotated[
        Path,
        option("MODEL", "Folder: config.json, tokenizer.json, *.safetensors", argument=True),
    ]
    out: Annotated[
        Path,
        option(
            "OUT",
            "Folder to write",
            "-o",
            "--out",
            more="The artifact appears there when it is complete",
            before="passes",
        ),
    ]
    seed: Annotated[
        int | None,
        option(
            "N",
            "Seed of windows and masks",
            more="For every pass that has this option",
            before="states",
        ),
    ] = None
    frontend: Annotated[
        str,
        option(
            "NAME",
            "Front end: fx | export | auto",
            more="fx: own families; export: transformers' classes; auto: the first that there is",
            before="device",
        ),
    ] = "auto"
    deterministic_reduce: Annotated[
        bool,
        switch(
            "Under torchrun: the bytes of one process",
            more="Whatever their number; their calibration takes turns",
            before="plugins",
        ),
    ] = False
    force: Annotated[bool, switch("Replace an artifact that is at OUT", before="plugins")] = False
    resume: Annotated[
        bool, switch("Go on from an interrupted compile of OUT", before="plugins")
    ] = False
    restart: Annotated[bool, switch("Discard it and begin anew", before="plugins")] = False
    write_report: Annotated[
        bool,
        switch(
            "Write report.json and report.html to the folder OUT-report",
            "--no-report",
            help="Write no page to OUT-report",
            before="plugins",
        ),
    ] = True
    dump_after: Annotated[
        tuple[str, ...],
        BeforeValidator(as_list),
        option("NAMES", "Write the IR after these passes: all, or a,b"),
    ] = ()
    dump_dir: Annotated[Path | None, option("DIR", "Where [default: OUT-dumps]")] = None
    stop_after: Annotated[str | None, option("PASS", "Stop there: write the IR, no artifact")] = (
        None
    )

    @model_validator(mode="after")
    def _nothing_is_contradicted(self) -> Self:
        if not self.target.name:
            raise InvalidPipeline(f"{self.out} has no name", help="choose another -o")
        if self.stop_after is not None:
            for given, text in (
                (self.force, "--force replaces an artifact"),
                (self.resume, "--resume goes on with an artifact"),
                (self.restart, "--restart begins an artifact anew"),
            ):
                if given:
                    raise InvalidPipeline(
                        f"{text}, and --stop-after writes none", help="leave one out"
                    )
        if self.resume and self.restart:
            raise InvalidPipeline(
                "--resume goes on from an interrupted compile, and --restart discards it",
                help="leave one out",
            )
        if self.resume and self.dump_after:
            raise InvalidPipeline(
                "--dump-after shows what passes did in this process, and --resume goes on from "
                "another",
                help="leave --dump-after out, or begin anew with --restart",
            )
        if self.dump_dir is not None and not self.dumped:
            raise InvalidPipeline(
                "--dump-dir is given, and nothing is dumped", help="add --dump-after all"
            )
        return self

    @property
    def dumped(self) -> tuple[str, ...]:
        """Names of passes after which the graph is written, or ``all``."""
        return (*self.dump_after, *([] if self.stop_after is None else [self.stop_after]))

    @property
    def target(self) -> Path:
        """``out`` as an absolute path that ends in a name."""
        return self.out.resolve() if self.out.name in ("", "..") else self.out.absolute()


class CommonKeywords(TypedDict, total=False):
    """What type checkers and editors know of the keywords of ``qdc.compile``."""

    out: Required[PathLike]
    effort: str
    text_field: str
    chat_fields: str | None
    document_tokens: str
    samples: int | None
    length: int | None
    pack: str | None
    isolate: bool | None
    geometry: str | None
    seed: int | None
    states: str
    host_memory: str | int | None
    device_memory: str | int | None
    device: str
    deterministic_reduce: bool
    force: bool
    resume: bool
    restart: bool
    write_report: bool
    plugins: PathLike | Sequence[PathLike]
    dump_after: str | Sequence[str]
    dump_dir: PathLike | None
    stop_after: str | None


class CompileKeywords(CommonKeywords, total=False):
    """The keywords for a folder."""

    calibration: PathLike | None
    frontend: str


class ModuleKeywords(CommonKeywords, total=False):
    """The keywords for a module."""

    calibration: "Tensor | PathLike | None"
    """Token ids ``i64[n, length]``, or a text, for which a tokenizer is needed."""
    tokenizer: "PreTrainedTokenizerBase | PathLike | None"
    """One of transformers, or a folder with its files; the artifact takes it along."""
    mask_token_id: int | None
    """The tokenizer's, if not given. Without one passes draw no masks: ``geometry=clean``."""
    vocabulary: int | None
    """How many token ids there are; if not given, the rows of the embedding."""
    max_length: int | None
    """Tokens of the longest input; if not given, what the module has positions for."""
    logits_shift: int
    """1 if position i of the logits predicts token i + 1; 0 if not given."""
