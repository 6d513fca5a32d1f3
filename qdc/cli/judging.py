"""The commands that judge: evaluate, report, inspect-calibration. As in ``app``, no torch here."""

from pathlib import Path
from typing import Annotated

import typer

from qdc.cli.exclusions import OF_TASKS, OF_TEXT, refuse_mixture
from qdc.cli.options import (
    Calibration,
    ChatFields,
    Device,
    Json,
    Plugins,
    RunBackend,
    TextField,
    app,
)


@app.command(name="eval")
def evaluate(
    context: typer.Context,
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL", help="Artifacts or model folders")
    ],
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Held-out text or jsonl file")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="Compare with this [of several: the first]")
    ] = None,
    ratios: Annotated[str, typer.Option(metavar="LIST", help="Mask ratios")] = "0.15,0.5,0.85",
    length: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of a window [default: the model's]")
    ] = None,
    windows: Annotated[int, typer.Option(metavar="N", help="Most windows to use")] = 128,
    seeds: Annotated[
        int, typer.Option(metavar="N", help="Mask drawings of each window and ratio")
    ] = 3,
    infills: Annotated[
        int, typer.Option(metavar="N", help="Gaps that both models fill greedily")
    ] = 16,
    text_field: TextField = "text",
    tasks: Annotated[
        str | None, typer.Option(metavar="LIST", help="Tasks of lm-eval, instead of --text")
    ] = None,
    include: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Your tasks' yaml; may run code in it")
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Documents of each task")] = None,
    shots: Annotated[int | None, typer.Option(metavar="N", help="Examples in a prompt")] = None,
    scorer: Annotated[
        str, typer.Option(metavar="NAME", help="auto | llada | dream | dream-published")
    ] = "auto",
    mc_num: Annotated[int, typer.Option(metavar="N", help="Masks of one likelihood")] = 128,
    cfg: Annotated[float, typer.Option(metavar="W", help="Guidance of likelihoods")] = 0.0,
    generate: Annotated[
        str | None, typer.Option(metavar="LIST", help="Decoding: length=64,block=32,...")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Prompts in the chat template")] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of masks of tasks")] = 1234,
    batch: Annotated[int, typer.Option(metavar="N", help="Sequences of a forward")] = 16,
    device: Device = "cpu",
    backend: RunBackend = "reference",
    report: Annotated[
        bool, typer.Option("--report", help="Add the figures to the artifact's report")
    ] = False,
    plugin: Plugins = None,
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
    given = {
        name
        for name in (*OF_TEXT, *OF_TASKS, "json", "markdown")
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
    compared = against is not None or len(models) > 1
    refuse_mixture(given, text=text is not None, tasks=tasks is not None, compared=compared)
    if tasks is not None:
        from qdc.cli.tasks import tasks_command

        tasks_command(
            models=models,
            tasks=tasks,
            against=against,
            include=include,
            limit=limit,
            shots=shots,
            scorer=scorer,
            mc_num=mc_num,
            cfg=cfg,
            generate=generate,
            chat=chat,
            seed=seed,
            batch=batch,
            device=device,
            backend=backend,
            plugins=plugin or [],
            as_json=json,
            as_markdown=markdown,
        )
    elif text is not None:
        from qdc.cli.evaluate import evaluate_command

        evaluate_command(
            models=models,
            text=text,
            against=against,
            ratios=ratios,
            length=length,
            windows=windows,
            seeds=seeds,
            batch=batch,
            infills=infills,
            text_field=text_field,
            device=device,
            backend=backend,
            add_to_report=report,
            plugins=plugin or [],
            as_json=json,
            as_markdown=markdown,
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
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Show how masks shift the inputs of each layer.

    \b
    Examples:
      qdc inspect-calibration examples/tiny-llada
      qdc inspect-calibration MODEL --calibration docs.jsonl --samples 32
      qdc inspect-calibration MODEL --ratios 0.5,1 --json
    """  # noqa: D301
    from qdc.cli.inspect_calibration import inspect_command
    from qdc.text.records import Fields

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
        plugins=plugin or [],
        as_json=json,
    )
