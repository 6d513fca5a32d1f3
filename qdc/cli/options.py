"""The application, and the options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="qdc",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin", metavar="FILE", help="Python file with further passes, backends, families"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text")]
Device = Annotated[str, typer.Option(metavar="NAME", help="cpu | cuda | auto")]
TextField = Annotated[
    str, typer.Option(metavar="NAME", help="Field that holds the text of a record")
]
ChatFields = Annotated[
    str | None, typer.Option(metavar="NAMES", help="PROMPT,ANSWER or MESSAGES: fields of a chat")
]
Calibration = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="Text, jsonl, dataset folder [default: embedded]"),
]
Passes = Annotated[str, typer.Option(metavar="TEXT", help="Preset or pass{option=value},...")]
BackendName = Annotated[str, typer.Option(metavar="NAME", help="Who writes the artifact")]
RunBackend = Annotated[
    str, typer.Option("--backend", metavar="NAME", help="Who runs an artifact: reference | triton")
]
Samples = Annotated[int | None, typer.Option(metavar="N", help="Sequences to calibrate on")]
Length = Annotated[int | None, typer.Option(metavar="N", help="Tokens of a sequence")]
States = Annotated[
    str, typer.Option(metavar="DTYPE", help="Calibration states in memory: bf16, f32")
]
HostMemory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Of those, above it on disk [default: half of all]"),
]
Runnable = Annotated[Path, typer.Argument(metavar="MODEL", help="Artifact or model folder")]
