"""The commands that run, judge and hand on models, and their options.

Nothing here imports torch: ``qdc --help`` answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from qdc.cli.fields import from_fields
from qdc.cli.options import (
    InspectionOptions,
    Json,
    Runnable,
    VerifyOptions,
    app,
)
from qdc.errors import QdcError
from qdc.evaluation.options import EvaluationOptions
from qdc.exporting.options import ExportOptions
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.options import RunOptions
from qdc.serve.limits import ServeOptions

Special = Annotated[bool, typer.Option("--special", help="Read special tokens in the text as such")]


@app.command()
@from_fields
def run(
    model: Runnable,
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help="Text with <mask> gaps; - reads stdin")
    ],
    *,
    gap: Annotated[int, typer.Option(metavar="N", help="Tokens of each gap")] = 1,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Forwards [default: one a token]")
    ] = None,
    special: Special = False,
    running: RunOptions,
    json: Json = False,
) -> None:
    """Fill the gaps of a text.

    \b
    Examples:
      qdc run out "for i in <mask>(10):"
      qdc run out "def read(path):<mask>" --gap 12
      qdc run out "[CLS] one [MASK] two [SEP]" --special
    """  # noqa: D301
    from qdc.cli.run import run_command

    run_command(model, text, gap, steps, running, special=special, as_json=json)


@app.command()
@from_fields
def generate(
    model: Runnable,
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT", help="What to continue; - reads stdin", show_default=False
        ),
    ] = None,
    *,
    special: Special = False,
    chat: Annotated[bool, typer.Option("--chat", help="Write it in the chat template")] = False,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System message, of --chat")
    ] = None,
    turns: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Turns before, of --chat: jsonl of role, content"),
    ] = None,
    options: DecodeOptions,
    verifier: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Autoregressive model, of apd")
    ] = None,
    running: RunOptions,
    json: Json = False,
) -> None:
    """Write an answer, and show how it unmasks.

    qdc strategies lists low-confidence, threshold, entropy and all others.

    \b
    Examples:
      qdc generate out "def read(path):" --length 64
      qdc generate out - --chat --block 32 --strategy threshold --cache dual
      qdc generate out "And now?" --chat --system "Be brief." --turns chat.jsonl
    """  # noqa: D301
    from qdc.cli.generate import generate_command
    from qdc.cli.prompts import Asked

    asked = Asked(prompt, special=special, chat=chat, system=system, turns=turns)
    generate_command(model, asked, options, running, verifier=verifier, as_json=json)


@app.command()
@from_fields
def chat(
    model: Runnable,
    *,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message")] = None,
    turns: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Turns to go on from: jsonl of role, content"),
    ] = None,
    options: DecodeOptions,
    running: RunOptions,
    json: Json = False,
) -> None:
    """Talk with a model, line by line.

    Each line is a message of yours; the model reads all that was said before, in its chat template.
    /new begins anew, /exit or the end of stdin ends. With --json both turns are printed as
    lines of JSON, which --turns reads again.

    \b
    Examples:
      qdc chat out
      qdc chat out --system "Be brief." --length 64 --block 32
      printf 'Hello\\nAnd again?\\n' | qdc chat out --turns before.jsonl
    """  # noqa: D301
    from qdc.cli.chat import chat_command

    chat_command(model, options, running, system, turns, as_json=json)


@app.command(name="eval")
@from_fields
def evaluate(
    options: EvaluationOptions,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print markdown tables")] = False,
    json: Json = False,
) -> None:
    """Measure models on held-out text, or on tasks.

    \b
    Examples:
      qdc eval out --text held.jsonl --against MODEL --report
      qdc eval out out2 --text held.jsonl --against MODEL --markdown
      qdc eval out --tasks arc_easy,gsm8k --limit 200 --against MODEL
    """  # noqa: D301
    if json and markdown:
        raise QdcError("--json and --markdown exclude each other", help="leave one out")
    if options.tasks:
        from qdc.cli.tasks import tasks_command

        tasks_command(options, as_json=json, as_markdown=markdown)
    else:
        from qdc.cli.evaluate import evaluate_command

        evaluate_command(options, as_json=json, as_markdown=markdown)


@app.command()
def report(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Artifact, its report folder or report.json")
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="Page to write [default: report.html]"),
    ] = None,
    json: Json = False,
) -> None:
    """Write the report of a compile as a page again.

    \b
    Examples:
      qdc report out
      qdc report out -o page.html
      qdc report out --json
    """  # noqa: D301
    from qdc.cli.report import report_command

    report_command(path, out, json)


@app.command(name="inspect-calibration")
@from_fields
def inspect_calibration(options: InspectionOptions, json: Json = False) -> None:
    """Show how masks shift the inputs of each layer.

    \b
    Examples:
      qdc inspect-calibration examples/tiny-llada
      qdc inspect-calibration MODEL --calibration docs.jsonl --samples 32
      qdc inspect-calibration MODEL --ratios 0.5,1 --json
    """  # noqa: D301
    from qdc.cli.inspect_calibration import inspect_command

    inspect_command(options, as_json=json)


@app.command()
@from_fields
def verify(options: VerifyOptions, json: Json = False) -> None:
    """Find what has changed in an artifact.

    Every file is compared with the digest it was written with, and every tensor with that of the
    IR dump, where it has one. The exit code is 1 if something is damaged.

    \b
    Examples:
      qdc verify out
      qdc verify out --json
    """  # noqa: D301
    from qdc.cli.verify import verify_command

    verify_command(options, as_json=json)


@app.command()
@from_fields
def export(options: ExportOptions, json: Json = False) -> None:
    """Write an artifact as a checkpoint that needs no qdc.

    Weights are decoded shard by shard, under the key names of the checkpoint. They take as many
    bytes as the checkpoint did: what is gained is that other engines load them.

    \b
    Examples:
      qdc export out -o dense --verify
      qdc export out -o dense --dtype f32 --force --json
    """  # noqa: D301
    from qdc.cli.export import export_command

    export_command(options, as_json=json)


@app.command()
@from_fields
def serve(options: ServeOptions, json: Json = False) -> None:
    """Serve OpenAI's protocol and a page.

    It listens on this machine alone, until SIGINT or SIGTERM. With --json the address is printed
    as JSON.

    \b
    Examples:
      qdc serve out
      qdc serve out --port 0 --batch 16 --json
      qdc serve out --host 0.0.0.0 --allow-host models.example
    """  # noqa: D301
    from qdc.cli.serve import serve_command

    serve_command(options, as_json=json)
