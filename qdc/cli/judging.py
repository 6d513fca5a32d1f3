"""The commands that judge: evaluate, report, inspect-calibration. As in ``app``, no torch here."""

from pathlib import Path
from typing import Annotated

import typer

from qdc.cli.options import Calibration, ChatFields, Device, Json, Plugins, Runnable, TextField, app


@app.command(name="eval")
def evaluate(
    model: Runnable,
    text: Annotated[Path, typer.Option(metavar="FILE", help="Held-out text or jsonl file")],
    against: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="Compare with this one, on the same masks")
    ] = None,
    ratios: Annotated[str, typer.Option(metavar="LIST", help="Mask ratios")] = "0.15,0.5,0.85",
    length: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of a window [default: the model's]")
    ] = None,
    windows: Annotated[int, typer.Option(metavar="N", help="Most windows to use")] = 128,
    seeds: Annotated[
        int, typer.Option(metavar="N", help="Mask drawings of each window and ratio")
    ] = 3,
    text_field: TextField = "text",
    device: Device = "cpu",
    report: Annotated[
        bool, typer.Option("--report", help="Add the figures to the artifact's report")
    ] = False,
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Measure masked cross-entropy on held-out text.

    The last rows are the bound, an upper bound on the negative log-likelihood of a token, and what
    the frequencies of the tokens alone would reach.

    \b
    Examples:
      qdc eval out --text examples/tiny-llada/heldout.jsonl
      qdc eval out --text heldout.jsonl --against examples/tiny-llada --report
    """  # noqa: D301
    from qdc.cli.evaluate import evaluate_command

    evaluate_command(
        model=model,
        text=text,
        against=against,
        ratios=ratios,
        length=length,
        windows=windows,
        seeds=seeds,
        text_field=text_field,
        device=device,
        add_to_report=report,
        plugins=plugin or [],
        as_json=json,
    )


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
def inspect_calibration(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder")],
    calibration: Calibration = None,
    text_field: TextField = "text",
    chat_fields: ChatFields = None,
    samples: Annotated[int, typer.Option(metavar="N", help="Windows to compare")] = 16,
    length: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of a window [default: the model's]")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of windows and masks")] = 0,
    ratios: Annotated[
        str, typer.Option(metavar="LIST", help="Mask ratios")
    ] = "0.1,0.3,0.5,0.7,0.9",
    top: Annotated[int, typer.Option(metavar="N", help="Eigenvectors whose space is compared")] = 8,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Show how masks shift the inputs of each layer.

    \b
    Examples:
      qdc inspect-calibration examples/tiny-llada
      qdc inspect-calibration MODEL --calibration docs.jsonl --samples 32
      qdc inspect-calibration MODEL --ratios 0.5,1 --json
    """  # noqa: D301
    from qdc.calibration.records import Fields
    from qdc.cli.inspect_calibration import inspect_command

    inspect_command(
        model=model,
        calibration=calibration,
        fields=Fields.parse(text_field, chat_fields),
        samples=samples,
        length=length,
        seed=seed,
        ratios=ratios,
        top=top,
        device=device,
        as_json=json,
    )
