"""What a comparison may be asked for: the options of ``qdc.compare`` and of ``qdc compare``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Required, Self, TypedDict

from pydantic import BeforeValidator, model_validator

from qdc.errors import QdcError
from qdc.evaluation.options import as_ratios
from qdc.ir.text_use import HeldOutPack, Pack
from qdc.options import Options, PathLike, as_list, option, switch
from qdc.runtime.options import Device, Plugins
from qdc.text.options import AroundTexts, Calibration, ChatFields, TextField, read_fields
from qdc.text.records import DEFAULT_FIELD

OF_SAMPLES = {"samples", "length", "pack", "isolate", "geometry"}
"""Options that go to every pass that has them."""


def _as_texts(given: Any) -> Any:
    """One text where several may stand."""
    return (given,) if isinstance(given, str) else given


def _as_seeds(given: Any) -> Any:
    """Seeds from ``0,1,2`` or from one number. Raises ``QdcError``."""
    if isinstance(given, int):
        return (given,)
    parts: Any = as_list(given)
    try:
        return tuple(int(part) for part in parts)
    except (TypeError, ValueError) as error:
        raise QdcError(f"--seeds {given!r} is no list of numbers", help="--seeds 0,1,2") from error


class CompareOptions(Options):
    """Everything that a user says of a comparison. Frozen; refuses what contradicts itself."""

    refusal: ClassVar[str] = "a comparison cannot be asked for that"
    manual: ClassVar[str] = "qdc compare --help names the options"
    positional: ClassVar[tuple[str, ...]] = ("model_dir", "methods")

    model_dir: Annotated[Path, option("MODEL", "Folder of the model", argument=True)]
    methods: Annotated[
        tuple[str, ...],
        BeforeValidator(_as_texts),
        option(
            "LIST",
            "Presets, LABEL=pipeline, all",
            more="Separated by commas, as passes are: a pipeline ends with its pack",
            repeated=True,
        ),
    ]
    text: Annotated[Path, option("PATH", "Held-out text, records, dataset folder")]
    out: Annotated[
        Path,
        option(
            "DIR",
            "Results, table and page; what is there is kept",
            "-o",
            "--out",
            more="The same call goes on where an earlier one has ended",
        ),
    ]
    seeds: Annotated[
        tuple[int, ...], BeforeValidator(_as_seeds), option("LIST", "Seeds of calibration")
    ] = (0,)
    vary: Annotated[
        tuple[str, ...],
        BeforeValidator(_as_texts),
        option(
            "OPTION=A,B",
            "Run each method that has it with each value",
            more="Differences from the first value are paired",
            repeated=True,
        ),
    ] = ()
    calibration: Calibration = None
    text_field: TextField = DEFAULT_FIELD
    chat_fields: ChatFields = None
    document_tokens: AroundTexts = "auto"
    samples: Annotated[int | None, option("N", "Sequences to calibrate on")] = None
    length: Annotated[int | None, option("N", "Tokens of a sequence")] = None
    pack: Annotated[
        Pack | None, option("NAME", "Documents in a sequence: documents, within, pad")
    ] = None
    isolate: Annotated[bool | None, switch("Documents of a sequence do not see each other")] = None
    geometry: Annotated[
        str | None,
        option(
            "NAME",
            "Which tokens are masked in calibration: mcs, clean, ...",
            more="clean masks none, as for a model without mask token",
        ),
    ] = None
    ratios: Annotated[
        tuple[float, ...], BeforeValidator(as_ratios), option("LIST", "Mask ratios")
    ] = (0.15, 0.5, 0.85)
    masks: Annotated[int, option("N", "Mask drawings of each window and ratio")] = 2
    windows: Annotated[int, option("N", "Most held-out windows")] = 48
    held_length: Annotated[
        int | None, option("N", "Tokens of a held-out window [default: the model's]")
    ] = None
    held_pack: Annotated[
        HeldOutPack, option("NAME", "How held-out documents fill one: documents, within")
    ] = "documents"
    held_field: Annotated[str, option("NAME", "Field with the text of a held-out record")] = (
        DEFAULT_FIELD
    )
    jobs: Annotated[int, option("N", "Processes at a time")] = 1
    threads: Annotated[int | None, option("N", "Threads of each [default: this one's, shared]")] = (
        None
    )
    device: Device = "cpu"
    tag: Annotated[str, option("TEXT", "Marks results; another tag computes anew", shown="")] = ""
    keep_artifacts: Annotated[bool, switch("Keep what was compiled, in DIR/artifacts")] = False
    plugins: Plugins = ()

    @model_validator(mode="after")
    def _nothing_is_contradicted(self) -> Self:
        read_fields(self.calibration, self.text_field, self.chat_fields)
        varied = {text.partition("=")[0].strip().replace("-", "_") for text in self.vary}
        both = sorted(
            varied & {"samples", "length", "pack", "isolate", "geometry"} & self.model_fields_set
        )
        if "seed" in varied or both:
            name = "seeds" if "seed" in varied else both[0]
            raise QdcError(
                f"--vary and --{name} both say what {name.removesuffix('s')} is",
                help=f"leave one of them out; --{name} gives all methods the same",
            )
        for wrong, text, help in (
            (not self.seeds, "--seeds names no seed", "--seeds 0"),
            (len(set(self.seeds)) < len(self.seeds), "--seeds names a seed twice", "leave it out"),
            (self.masks < 1, f"--masks {self.masks} draws no mask", "--masks 1 or more"),
            (not self.ratios, "--ratios names no ratio", "--ratios 0.15,0.5,0.85"),
            (self.windows < 2, f"--windows {self.windows} gives no standard error", "2 or more"),
            (self.jobs < 1, f"--jobs {self.jobs} runs nothing", "--jobs 1 or more"),
            (
                self.threads is not None and self.threads < 1,
                f"--threads {self.threads} computes nothing",
                "--threads 1 or more",
            ),
        ):
            if wrong:
                raise QdcError(text, help=help)
        return self


class CompareKeywords(TypedDict, total=False):
    """What type checkers and editors know of the keywords of ``qdc.compare``."""

    text: Required[PathLike]
    out: Required[PathLike]
    seeds: int | str | Sequence[int]
    vary: str | Sequence[str]
    calibration: PathLike | None
    text_field: str
    chat_fields: str | None
    document_tokens: str
    samples: int | None
    length: int | None
    pack: str | None
    isolate: bool | None
    geometry: str | None
    ratios: str | Sequence[float]
    masks: int
    windows: int
    held_length: int | None
    held_pack: str
    held_field: str
    jobs: int
    threads: int | None
    device: str
    tag: str
    keep_artifacts: bool
    plugins: PathLike | Sequence[PathLike]
