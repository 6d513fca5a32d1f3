"""The application with its first page, and options that several commands share."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import typer
from pydantic import BeforeValidator, model_validator

from qdc.cli.group import Group
from qdc.cli.ranks import refuse_ranks
from qdc.errors import QdcError
from qdc.evaluation.options import as_ratios
from qdc.ir.text_use import Pack
from qdc.options import Options, option, switch
from qdc.runtime.options import Device, Plugins
from qdc.text.options import AroundTexts, Calibration, ChatFields, TextField
from qdc.text.records import DEFAULT_FIELD
from qdc.version import __version__

app = typer.Typer(
    name="qdc",
    cls=Group,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Names = Annotated[list[str] | None, typer.Argument(metavar="NAME...", help="Describe just these")]
PluginFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin", metavar="FILE", help="Python file: passes, backends, families, strategies"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text")]
Runnable = Annotated[Path, typer.Argument(metavar="MODEL", help="Artifact or model folder")]


STEPS = 16
"""Of the sampler of an inspection, over a whole text."""


class InspectionOptions(Options):
    """What ``qdc inspect-calibration`` draws and compares."""

    refusal: ClassVar[str] = "an inspection cannot be asked for that"
    manual: ClassVar[str] = "qdc inspect-calibration --help names the options"

    model: Annotated[Path, option("MODEL", "Model folder", argument=True)]
    calibration: Calibration = None
    text_field: TextField = DEFAULT_FIELD
    chat_fields: ChatFields = None
    document_tokens: AroundTexts = "auto"
    samples: Annotated[int, option("N", "Windows to compare")] = 16
    length: Annotated[int | None, option("N", "Tokens of a window [default: the model's]")] = None
    pack: Annotated[Pack, option("NAME", "How documents fill a window: documents, within, pad")] = (
        "documents"
    )
    seed: Annotated[int, option("N", "Seed of windows and masks")] = 0
    ratios: Annotated[
        tuple[float, ...], BeforeValidator(as_ratios), option("LIST", "Mask ratios")
    ] = (0.1, 0.3, 0.5, 0.7, 0.9)
    geometry: Annotated[
        Literal["mcs", "tmas", "uniform-noise"] | None,
        option(
            "NAME",
            "mcs | tmas | uniform-noise",
            more="Who masks at each ratio: chance, or the model's own sampler behind a prompt; "
            "``uniform-noise`` puts random tokens into a canvas. Not given: ``mcs``, and "
            "``uniform-noise`` for models that write canvases from noise, which take no other",
        ),
    ] = None
    steps: Annotated[int, option("N", "Of the sampler of tmas")] = STEPS
    top: Annotated[int, option("N", "Eigenvectors whose space is compared")] = 8
    device: Device = "cpu"
    plugins: Plugins = ()

    @model_validator(mode="after")
    def _steps_are_read(self) -> Self:
        if self.geometry != "tmas" and self.steps != STEPS:
            raise QdcError(
                f"--steps is of a sampler, and --geometry {self.geometry or 'mcs'} asks none",
                help="leave --steps out, or take --geometry tmas",
            )
        return self


class ShowOptions(Options):
    """What ``qdc show`` prints, and how much of it."""

    refusal: ClassVar[str] = "a graph cannot be shown like that"
    manual: ClassVar[str] = "qdc show --help names the options"

    path: Annotated[
        Path, option("PATH", "IR dump, its text, artifact or model folder", argument=True)
    ]
    only: Annotated[str, option("PATTERN", "Nodes, as in 'blocks.0.*'")] = "*"
    tags: Annotated[str | None, option("TAGS", "Just these annotations, as in orders,packed")] = (
        None
    )
    full: Annotated[bool, switch("Every fact: a text that can be read back")] = False
    plugins: Plugins = ()

    @property
    def wanted(self) -> tuple[str, ...] | None:
        """The annotations to print; None for all."""
        return tuple(t.strip().lstrip("@") for t in self.tags.split(",")) if self.tags else None


class OptOptions(Options):
    """What ``qdc opt`` runs, and where the result goes."""

    refusal: ClassVar[str] = "passes cannot be run on a dump like that"
    manual: ClassVar[str] = "qdc opt --help names the options"

    dump: Annotated[
        Path, option("DUMP", "IR dump, its text, or artifact; - reads stdin", argument=True)
    ]
    passes: Annotated[str, option("TEXT", "Pass{option=value},...")]
    out: Annotated[
        Path | None, option("FILE", "A dump if it ends in .qdc, else a text", "-o", "--out")
    ] = None
    full: Annotated[bool, switch("Every fact: a text that can be read back")] = False
    remarks: Annotated[bool, switch("What passes say of each layer, on stderr")] = False
    plugins: Plugins = ()


class VerifyOptions(Options):
    """What ``qdc verify`` reads."""

    refusal: ClassVar[str] = "nothing can be verified like that"
    manual: ClassVar[str] = "qdc verify --help names the options"

    artifact: Annotated[Path, option("ARTIFACT", "Folder that qdc compile wrote", argument=True)]
    plugins: Plugins = ()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qdc {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version")
    ] = False,
) -> None:
    """Compile diffusion language models to a 2-bit average.

    \b
    qdc plan MODEL                     sizes, memory and time beforehand
    qdc compile MODEL -o OUT           trace, quantize, pack, write an artifact
    qdc run OUT "a text with <mask>"   fill the gaps
    qdc generate OUT "a prompt"        write on, and watch it unmask
    qdc chat OUT                       talk, line by line
    qdc serve OUT                      OpenAI's protocol, and a page
    qdc eval OUT --text held.jsonl --against MODEL
    qdc compare MODEL --methods all --text held.jsonl --out DIR
    qdc show OUT --only 'blocks.0.*'   read the IR
    qdc verify OUT                     find bits that have flipped
    qdc opt DUMP --passes TEXT         run passes on it
    """  # noqa: D301
    if context.invoked_subcommand != "compile":
        refuse_ranks(context.invoked_subcommand or "")
