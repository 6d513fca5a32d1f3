"""The application with its first page, and options that several commands share."""

from pathlib import Path
from typing import Annotated, ClassVar

import typer
from pydantic import BeforeValidator

from qdc.cli.ranks import refuse_ranks
from qdc.evaluation.options import as_ratios
from qdc.options import Options, option
from qdc.runtime.options import Device, Plugins
from qdc.text.options import Calibration, ChatFields, TextField
from qdc.text.records import DEFAULT_FIELD
from qdc.version import __version__

app = typer.Typer(
    name="qdc",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

PluginFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin", metavar="FILE", help="Python file: passes, backends, families, strategies"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text")]
Runnable = Annotated[Path, typer.Argument(metavar="MODEL", help="Artifact or model folder")]


class InspectionOptions(Options):
    """What ``qdc inspect-calibration`` draws and compares."""

    refusal: ClassVar[str] = "an inspection cannot be asked for that"
    manual: ClassVar[str] = "qdc inspect-calibration --help names the options"

    model: Annotated[Path, option("MODEL", "Model folder", argument=True)]
    calibration: Calibration = None
    text_field: TextField = DEFAULT_FIELD
    chat_fields: ChatFields = None
    samples: Annotated[int, option("N", "Windows to compare")] = 16
    length: Annotated[int | None, option("N", "Tokens of a window [default: the model's]")] = None
    seed: Annotated[int, option("N", "Seed of windows and masks")] = 0
    ratios: Annotated[
        tuple[float, ...], BeforeValidator(as_ratios), option("LIST", "Mask ratios")
    ] = (0.1, 0.3, 0.5, 0.7, 0.9)
    top: Annotated[int, option("N", "Eigenvectors whose space is compared")] = 8
    device: Device = "cpu"
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
    qdc serve OUT                      OpenAI's protocol, and a page
    qdc eval OUT --text held.jsonl --against MODEL
    qdc show OUT --only 'blocks.0.*'   read the IR
    """  # noqa: D301
    if context.invoked_subcommand != "compile":
        refuse_ranks(context.invoked_subcommand or "")
