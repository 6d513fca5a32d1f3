"""``qdc generate`` and its options; nothing here imports torch."""

from pathlib import Path
from typing import Annotated

import typer

from qdc.cli.options import Device, Json, Plugins, RunBackend, Runnable, app


@app.command()
def generate(
    model: Runnable,
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="What to continue; - reads stdin")
    ],
    chat: Annotated[bool, typer.Option("--chat", help="Write it in the chat template")] = False,
    length: Annotated[int | None, typer.Option(metavar="N", help="New tokens [128]")] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Denoising steps [one a token]")
    ] = None,
    block: Annotated[
        int | None, typer.Option(metavar="N", help="Positions finished together [all]")
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What is decided when [low-confidence]"),
    ] = None,
    cache: Annotated[
        str | None, typer.Option(metavar="NAME", help="none | prefix | dual [none]")
    ] = None,
    temperature: Annotated[float | None, typer.Option(metavar="T", help="0 is greedy [0]")] = None,
    top_p: Annotated[
        float | None, typer.Option(metavar="P", help="Draw from this much probability")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(metavar="N", help="Draw from the N most probable")
    ] = None,
    alg_temperature: Annotated[
        float | None, typer.Option(metavar="T", help="Draw positions too [0]")
    ] = None,
    cfg: Annotated[
        float | None, typer.Option(metavar="W", help="Classifier-free guidance [0]")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(metavar="P", help="Of threshold [0.9], dynamic [0.85]")
    ] = None,
    factor: Annotated[float | None, typer.Option(metavar="F", help="Of factor [1]")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of all noise [0]")] = None,
    forbid_eos: Annotated[bool, typer.Option("--forbid-eos", help="Never end early")] = False,
    late_eos: Annotated[bool, typer.Option("--late-eos", help="Decide ends last")] = False,
    verifier: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Autoregressive model, of apd")
    ] = None,
    apd_mixture: Annotated[
        float | None, typer.Option(metavar="R", help="Weight against it [0.7]")
    ] = None,
    apd_window: Annotated[
        int | None, typer.Option(metavar="W", help="Columns computed anew [16]")
    ] = None,
    apd_lookahead: Annotated[
        int | None, typer.Option(metavar="M", help="Open columns seen [100]")
    ] = None,
    apd_acceptance: Annotated[
        str | None, typer.Option(metavar="NAME", help="corrected | parity")
    ] = None,
    device: Device = "cpu",
    backend: RunBackend = "reference",
    plugin: Plugins = None,
    json: Json = False,
) -> None:
    """Write an answer, and show how it unmasks.

    Strategies: low-confidence, random (LLaDA), origin, maskgit-plus, topk-margin, entropy (Dream),
    threshold, factor (Fast-dLLM), sequential, dynamic (SDAR), apd.

    \b
    Examples:
      qdc generate out "def read(path):" --length 64
      qdc generate out - --chat --block 32 --strategy threshold --cache dual
      qdc generate out "import os" --temperature 0.7 --seed 1 --json
    """  # noqa: D301
    from qdc.cli.generate import generate_command

    given = {
        "length": length,
        "steps": steps,
        "block": block,
        "strategy": strategy,
        "cache": cache,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "alg_temperature": alg_temperature,
        "cfg": cfg,
        "threshold": threshold,
        "factor": factor,
        "seed": seed,
        "forbid_eos": forbid_eos or None,
        "late_eos": late_eos or None,
        "apd_mixture": apd_mixture,
        "apd_window": apd_window,
        "apd_lookahead": apd_lookahead,
        "apd_acceptance": apd_acceptance,
    }
    options = {name: value for name, value in given.items() if value is not None}
    generate_command(model, prompt, chat, options, verifier, device, backend, plugin or [], json)
