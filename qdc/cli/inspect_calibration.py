"""``qdc inspect-calibration``: what masks do to the inputs of each layer."""

from collections.abc import Sequence

import torch
from pydantic import ValidationError
from rich.console import Console

from qdc.cli.options import InspectionOptions
from qdc.cli.terminal import (
    console,
    print_json,
    print_lines,
    print_table,
    progress,
    table,
    tell_left_out,
    tell_withheld,
)
from qdc.errors import InvalidCalibration, QdcError, UnsupportedModel
from qdc.frontend.encoding import open_encoder
from qdc.frontend.opening import open_model
from qdc.ir.facts import ModelFacts
from qdc.numerics.shift import Shift
from qdc.passkit.inspection import Sampling, StageShift, inspect
from qdc.pipeline.registry import standard_registry
from qdc.runtime.device import exact_products, find_device
from qdc.text.options import read_fields
from qdc.text.source import read_source

DRAWN = {"samples", "pack", "seed", "ratios", "steps", "top"}
"""Options that say what is drawn and compared."""
LEGEND = (
    "against the same windows without masks; ratio 0: other windows without masks, by chance",
    "trace: log of the ratio of energies; space: overlap of the leading eigenspaces, 1 if equal;",
    "moment: relative distance of the second moments; KL: median over the channels, in nats",
)
MATTERS = 1.5
"""Times the distance of other text, from which on the masks are what moves the moments."""
NOISE = "uniform-noise"
IN_NOISE = (
    ("masks move", "noise moves"), ("without masks", "without noise"), ("masks are", "noise is"),
    ("masked samples", "samples with noise"), ("geometry=mcs", f"geometry={NOISE}"),
)  # fmt: skip
"""Words of masks, and those for random tokens in their place."""
COLUMNS = ("trace", "space", "moment", "KL")


def inspect_command(options: InspectionOptions, *, as_json: bool) -> None:
    """Measure and print."""
    device = find_device(options.device)
    fields = read_fields(options.calibration, options.text_field, options.chat_fields)
    families = standard_registry(options.plugins).families
    checkpoint, program = open_model(options.model, families=families)
    longest, length = program.graph.model.max_length, options.length
    if length is not None and length > longest:
        raise InvalidCalibration(
            f"samples of {length} tokens are asked for, the model takes {longest}",
            help="choose a smaller length, or leave it out",
        )
    sampling = _sampling(
        **options.model_dump(include=DRAWN),
        geometry=_geometry(options, program.graph.model),
        length=longest if length is None else length,
    )
    source = read_source(options.calibration, fields)
    tell_left_out(source.name, source.left_out)
    encode = open_encoder(options.model, options.document_tokens, families=families)
    tell_withheld(encode.withheld)
    with progress() as update, exact_products():

        def tick(done: int, total: int) -> None:
            update("inspect the stages", done, total)

        found, use = inspect(
            program, checkpoint, source, encode, sampling, torch.device(device), tick
        )
    if as_json:
        data = as_data(found, sampling, f"{source.name} sha256:{source.digest}")
        print_json({**data, "calibration_text": use.model_dump(mode="json")})
    else:
        print_inspection(console(), found, sampling, source.name)
        print_lines(console(), "", *use.said, *use.notes)
        print_lines(console(), *(f"warning   {warning}" for warning in use.warnings))


def as_data(found: Sequence[StageShift], sampling: Sampling, calibration: str) -> dict[str, object]:
    """Ready for JSON."""
    rows = []
    for row in found:
        data = row._asdict()
        for part in ("every", "masked", "visible"):
            shift = data[part]
            data[part] = None if shift is None else shift._asdict()
        rows.append(data)
    return {"calibration": calibration, **sampling.model_dump(mode="json"), "stages": rows}


def print_inspection(
    to: Console, found: Sequence[StageShift], sampling: Sampling, calibration: str
) -> None:
    """Print what follows, a summary by ratio, then every stage at every ratio."""
    noise = sampling.geometry == NOISE
    said = conclusion(found, sampling.ratios)
    print_lines(to, *(_of_noise(line) if noise else line for line in said), "")
    hidden = "noise" if noise else "masked"
    title = f"{sampling.samples} windows of {sampling.length} tokens from {calibration}"
    rows = table(
        f"{title}: mean over {len({row.value for row in found})} stages",
        "ratio", *COLUMNS, *(f"{hidden} {name}" for name in COLUMNS[1:3]),
        *(f"visible {name}" for name in COLUMNS[1:3]), right=tuple(range(9)),
    )  # fmt: skip
    for ratio in (0.0, *sampling.ratios):
        here = [row for row in found if row.ratio == ratio]
        rows.add_row(f"{ratio:g}", *_cells(here))
    print_table(to, rows)
    each = table(
        "\nevery stage", "layers", "ratio", *COLUMNS, f"{hidden} moment", "visible moment",
        right=tuple(range(1, 8)),
    )  # fmt: skip
    before = ""
    for row in found:
        name = row.region + " " + " ".join(layer.rsplit(".", 1)[-1] for layer in row.layers)
        cells = _cells([row])
        each.add_row("" if name == before else name, f"{row.ratio:g}", *cells[:4], *cells[5::2])
        before = name
    print_table(to, each)
    print_lines(to, "", *(_of_noise(line) if noise else line for line in LEGEND))


def _geometry(options: InspectionOptions, model: ModelFacts) -> str:
    """What is compared at each ratio. Raises ``UnsupportedModel`` where the model has no such."""
    given = options.geometry or (NOISE if model.renoises else "mcs")
    if model.renoises != (given == NOISE):
        has = "is trained on random tokens" if model.renoises else "has no canvas of random tokens"
        raise UnsupportedModel(f"the model {has}", help="leave --geometry out")
    if model.renoises and options.pack == "pad":
        raise UnsupportedModel(
            "padding behind a text would be the model's canvas", help="leave --pack pad out"
        )
    return given


def _of_noise(line: str) -> str:
    """A line of masks, said of noise."""
    for word, other in IN_NOISE:
        line = line.replace(word, other)
    return line


def conclusion(found: Sequence[StageShift], ratios: Sequence[float]) -> tuple[str, ...]:
    """What the tables show, in words: how far masks move second moments, and where the most."""

    def distance(ratio: float) -> float | None:
        known = [row.every.distance for row in found if row.ratio == ratio and row.every]
        return sum(known) / len(known) if known else None

    chance = distance(0.0)
    moved = {ratio: d for ratio in ratios if (d := distance(ratio)) is not None and ratio}
    if not moved or not chance:
        return ("nothing was measured: no stage has inputs that are not zero",)
    ratio = max(moved, key=lambda each: moved[each])
    times = moved[ratio] / chance
    here = [row for row in found if row.ratio == ratio and row.every]
    worst = max(here, key=lambda row: row.every.distance if row.every else 0.0)
    layers = " ".join(layer.rsplit(".", 1)[-1] for layer in worst.layers)
    matters = times >= MATTERS
    return (
        f"masks move what the layers read {'much' if matters else 'hardly'}: at ratio {ratio:g} "
        f"second moments lie {moved[ratio]:.2f} from those of the clean text, {times:.1f} times "
        f"what other text does",
        f"the most at {worst.region} {layers}, {worst.every.distance if worst.every else 0:.2f}",
        "so calibrate on masked samples, as the default does (geometry=mcs)"
        if matters
        else "clean samples would do as well (geometry=clean)",
    )


def _cells(rows: Sequence[StageShift]) -> list[str]:
    every = [row.every for row in rows]
    cells = [_mean([s and s.trace for s in every], "+.2f"), *_pair(every)]
    cells.append(_mean([s and s.divergence for s in every], ".3f"))
    return [*cells, *_pair([r.masked for r in rows]), *_pair([r.visible for r in rows])]


def _pair(shifts: Sequence[Shift | None]) -> list[str]:
    return [
        _mean([s and s.overlap for s in shifts], ".2f"),
        _mean([s and s.distance for s in shifts], ".2f"),
    ]


def _mean(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return format(sum(known) / len(known), form) if known else "-"


def _sampling(**values: object) -> Sampling:
    try:
        return Sampling.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise QdcError(
            f"--{name} {first['input']} is refused: {first['msg'].lower()}",
            help="qdc inspect-calibration --help",
        ) from error
