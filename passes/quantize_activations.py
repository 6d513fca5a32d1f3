"""Quantize what linears read, token by token, to 8 or 4 bits; and what attention mixes.

A token has one step for all columns, or one for each group of them (``scheme=group``); steps are
those of the token as it comes, or static ones from calibration (``ranges=static``). Rotated layers
quantize rotated inputs, so ``rotate`` stands before. What later passes of a compile calibrate on is
what is left after rounding: in front of ``calibrate-cross`` the drift that a lowering takes back
includes that of activations.

``clip`` is the share of a token's range that codes span, or ``search``: of ``grid``, the share of
least squared error on calibration states, each column weighted by the energy of the weights that
read it. ``classes=masked`` finds it for masked and visible tokens apart, as they differ most in
diffusion models (STaR-Quant, arXiv 2606.04945). ``values`` also quantizes what attention mixes, the
value projection's output: ``plain`` with the given clip, ``interaction`` with that of least error
weighted by the attention that each token gets (IA-AQ of DLLMQuant, arXiv 2508.14090, whose grid is
1 and 0.8). Queries, keys and attention's weights stay as they are.

    before   %h0.q = linear %x   w f16[64,512]
    after        @input-codes  8 bits   tokens   clip 1, masked 0.9   error 4.1e-05
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BeforeValidator
from torch import Tensor

from qdc.ir.activations import InputCodes, OutputCodes, RowFormat
from qdc.ir.routing import ROWS
from qdc.numerics.rowquantizer import Bits, Scales, Zeros
from qdc.passkit import (
    CalibrationOptions,
    Field,
    Forecast,
    Kinds,
    LayerGraph,
    Node,
    Pass,
    Preset,
    Stage,
    Stream,
    TensorRef,
    Unit,
    UnsupportedModel,
    Work,
    model_validator,
    table_key,
)
from qdc.passkit.attention_values import mixed, refuse_lost_values, search_values
from qdc.passkit.calibration_fields import WEIGHTS
from qdc.passkit.experts import read
from qdc.passkit.token_statistics import ClipSearch, Ranges
from qdc.streaming.forecast import NO_DIGEST

GRID = (1.0, 0.8)
SEARCHED = "1,0.95,0.9,0.85,0.8,0.75,0.7"
"""What the searches of our presets try."""
GROUP = 128
ONE_CLASS = "write classes=all, as in w4a4{classes=all} or w2a8{classes=all}"
"""What to do where no token is known to be masked; these presets tell masked ones apart."""


def as_clip(given: object) -> object:
    """A share, or ``search``: one message for both, which a union would give two of."""
    if given == "search":
        return given
    try:
        clip = float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        clip = 0
    if not 0 < clip <= 1:
        raise ValueError("it is above 0 and at most 1, or search")
    return clip


class QuantizeActivations(CalibrationOptions):
    """Quantize what linears read, and what attention mixes, to 8 or 4 bits a token."""

    name: ClassVar[str] = "quantize-activations"
    provides: ClassVar[Kinds] = (InputCodes,)
    annotates: ClassVar[Kinds] = (OutputCodes,)
    presets: ClassVar[Mapping[str, Preset]] = {
        "dllmquant": Preset(
            "stages(calibrate-mcs{geometry=tmas token-weights=certainty},sensitivity,"
            "gptq-lower{bits=4}),quantize-activations{bits=4 zeros=asymmetric values=interaction},"
            "pack",
            4,
            "arXiv 2508.14090",
        ),
        "w4a4": Preset(
            "quantize-vocab,stages(rotate,quantize-activations{bits=4 scheme=group clip=search "
            f"grid={SEARCHED} classes=masked}},calibrate-cross,"
            "sensitivity{damp=0.1},gptq-lower{bits=4 zero=packed sweeps=1 rounds=2 "
            "asymmetry=1 target=whole}),pack",
            takes="quantize-activations",
        ),
        "w2a8": Preset(
            "quantize-vocab,stages(rotate,quantize-activations{clip=search "
            f"grid={SEARCHED} classes=masked}},calibrate-cross,"
            "sensitivity{damp=0.1 block=256 widths=even},abmp-allocate,"
            "daq-lower{tolerance=0.001 scale-bits=8 asymmetry=1}),pack",
            takes="quantize-activations",
        ),
    }
    forbids: ClassVar[Kinds] = (InputCodes,)
    unread: ClassVar[tuple[str, ...]] = WEIGHTS
    instead: ClassVar[str] = ": clips and ranges count every token alike"

    bits: Bits = Field(default=8, description="of a code")
    scheme: Literal["token", "group"] = Field(
        default="token", description="a scale for a whole token, or for each group of its columns"
    )
    group: int = Field(default=GROUP, ge=8, le=1 << 16, description="columns of a group")
    zeros: Zeros = Field(
        default="symmetric", description="0 in the middle of the codes, or where the range has it"
    )
    scales: Scales = Field(default="f32", description="what scales are rounded to")
    ranges: Literal["dynamic", "static"] = Field(
        default="dynamic", description="those of each token as it comes, or of calibration"
    )
    clip: Annotated[float | Literal["search"], BeforeValidator(as_clip)] = Field(
        default=1.0, description="share of the range that codes span, or search"
    )
    grid: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=GRID, min_length=1, max_length=64, description="shares that a search tries"
    )
    classes: Literal["all", "masked"] = Field(
        default="all", description="one clip for all tokens, or one for masked ones of their own"
    )
    values: Literal["none", "plain", "interaction"] = Field(
        default="none", description="what attention mixes: as it is, by clip, or by a search"
    )

    @model_validator(mode="after")
    def _no_option_is_ignored(self) -> "QuantizeActivations":
        if self.scheme == "token" and self.group != GROUP:
            raise ValueError("group is for scheme=group")
        if self.grid != GRID and not self.searches and self.values != "interaction":
            raise ValueError("grid is for clip=search and values=interaction")
        if self.classes == "masked" and not self.measures:
            raise ValueError("classes=masked is for what is measured: clip=search, ranges=static")
        if self.classes == "masked" and self.chosen_geometry == "clean":
            raise ValueError(f"geometry clean masks no token, so none has a class: {ONE_CLASS}")
        fields = type(self).model_fields
        given = [name for name in fields if name in self.idle]
        given = [name for name in given if getattr(self, name) != fields[name].default]
        if given:
            raise ValueError(
                f"{', '.join(given).replace('_', '-')} is for what is measured: clip=search, "
                "ranges=static, values=interaction"
            )
        return self

    @property
    def idle(self) -> frozenset[str]:
        """What says how samples are drawn, where none are."""
        own = set(CalibrationOptions.model_fields) - set(Pass.model_fields)
        return frozenset() if self.measures else frozenset(own)

    @property
    def searches(self) -> bool:
        """Whether clips of inputs are searched."""
        return self.clip == "search"

    @property
    def measures(self) -> bool:
        """Whether calibration states are looked at."""
        return self.searches or self.ranges == "static" or self.values == "interaction"

    @property
    def reads_calibration(self) -> bool:  # type: ignore[override]
        """Only what measures draws samples."""
        return self.measures

    def check(self, graph: LayerGraph) -> None:
        """Refuse classes where tokens cannot be told apart, and values that are out of reach."""
        if self.measures:
            super().check(graph)
        if self.classes == "masked" and any(node.op == ROWS for node in graph):
            raise UnsupportedModel(
                "an expert reads tokens without their places, so masked ones are not known",
                help=ONE_CLASS,
            )
        if self.classes == "masked" and graph.model.mask_token_id is None:
            raise UnsupportedModel(
                "the model has no mask token, so no tokens are masked",
                help=ONE_CLASS,
            )
        if self.values != "none":
            refuse_lost_values(graph, "leave values out: linears' inputs are quantized without it")

    def without_masks(self) -> "QuantizeActivations | None":
        """The same for all tokens alike, on clean text; itself where nothing is measured."""
        if not self.measures:
            return self
        found = super().without_masks()
        return None if found is None else found.model_copy(update={"classes": "all"})

    def run(self, unit: Unit) -> None:
        """Annotate the layers of each stage, from what the stage reads."""
        stream = None
        if self.measures:
            stream = unit.stream(lambda: self.draw(unit).batches(self.batch))
        for stage, layers in unit.layers_by_stage():
            if stream is not None:
                stream.enter(stage)
            note = self.inputs(unit, stream, stage, layers)
            for node in layers:
                unit.annotate(node, self.stored(unit, node, note))
                unit.remark("passed", node, clip=note.form.clip, error=note.error)
            for attention, node in self.mixed(unit.graph, layers):
                unit.annotate(node, self.outputs(stream, attention, node))
        if stream is not None and unit.whole_region and unit.region is not None:
            stream.leave(unit.region)

    def inputs(
        self, unit: Unit, stream: Stream | None, stage: Stage, layers: Sequence[Node]
    ) -> "Measured":
        """Measure what a stage reads; nothing is kept yet."""
        form = self.form(self.clips)
        if stream is None or not (self.searches or self.ranges == "static"):
            return Measured(form)
        columns = layers[0].columns
        ranges = None
        if self.ranges == "static":
            ranges = Ranges(form, columns, unit.device)
            for part in read(stream, stage, stream.masked):
                ranges.add(part.value, part.facts)
                del part  # or it is held while the next batch is computed
        energy = torch.stack([unit.weight(node).square().sum(0) for node in layers]).sum(0)
        grid = self.grid if self.searches else self.clips[:1]
        search = ClipSearch(form, grid, ranges)
        for part in read(stream, stage, stream.masked):
            search.add(part.value, part.facts, energy)
            del part
        clips, error = search.best()
        found = self.form(clips)
        return Measured(found, error, {} if ranges is None else ranges.stored(found))

    def stored(self, unit: Unit, node: Node, note: "Measured") -> InputCodes:
        """Keep static scales of a layer, and say all of it."""
        refs = tuple(
            unit.put(table_key(node.name, suffix), tensor) for suffix, tensor in note.static.items()
        )
        return InputCodes(
            form=note.form, tensors=refs, suffixes=tuple(note.static), error=note.error
        )

    def outputs(self, stream: Stream | None, attention: Node, node: Node) -> OutputCodes:
        """Choose how attention's values are quantized."""
        form = self.form(self.clips).model_copy(update={"static": False})
        if self.values == "plain" or stream is None:
            return OutputCodes(form=form)
        clips, error = search_values(stream, attention, node, form, self.grid)
        return OutputCodes(form=form.model_copy(update={"clip": clips}), error=error)

    def mixed(self, graph: LayerGraph, layers: Sequence[Node]) -> Iterator[tuple[Node, Node]]:
        """Attentions with the layer that gives their values, of these layers, if asked for."""
        return mixed(graph, () if self.values == "none" else layers)

    @property
    def clips(self) -> tuple[float, ...]:
        """The clip of each class before anything is searched."""
        clip = 1.0 if self.clip == "search" else self.clip
        return (clip, clip) if self.classes == "masked" else (clip,)

    def form(self, clips: tuple[float, ...]) -> RowFormat:
        """The format of inputs with these clips."""
        return RowFormat(
            bits=self.bits,
            group=self.group if self.scheme == "group" else 0,
            zeros=self.zeros,
            scales=self.scales,
            clip=clips,
            static=self.ranges == "static",
        )

    def forecast(self, unit: Forecast) -> None:
        """One stream where something is measured; stored are static scales alone."""
        stream = self.travel(unit) if self.measures else None
        form = self.form(self.clips)
        tried = len(self.grid) if self.searches else 1
        for stage, layers in unit.layers_by_stage():
            if stream is not None:
                stream.enter(stage)
                nbytes, work = stream.cost((stage.value,))
                numbers = stream.tokens_of(stage) * layers[0].columns
                passes = Work(elements=8 * tried * numbers)
                unit.work(nbytes + 3 * 4 * layers[0].columns, work + passes)
                once = 4 * stream.rows_read(stage) * layers[0].columns
                unit.work(stream.given((stage.value,)) + 4 * once)  # scaled, rounded, lost, squared
            for node in layers:
                refs = tuple(
                    TensorRef(
                        name=table_key(node.name, suffix),
                        dtype=kind.dtype,
                        shape=tuple(map(int, kind.shape)),
                        digest=NO_DIGEST,
                    )
                    for suffix, kind in form.specification(node.columns).items()
                )
                suffixes = tuple(form.specification(node.columns))
                unit.annotate(node, InputCodes(form=form, tensors=refs, suffixes=suffixes))
            for _, node in self.mixed(unit.graph, layers):
                unit.annotate(node, OutputCodes(form=form.model_copy(update={"static": False})))
        if stream is not None and unit.whole_region and unit.region is not None:
            stream.leave(unit.region)


class Measured:
    """What was found of a stage's inputs."""

    def __init__(
        self,
        form: RowFormat,
        error: float | None = None,
        static: dict[str, Tensor] | None = None,
    ) -> None:
        """Take the format, its error, and the tensors of static scales by suffix."""
        self.form, self.error, self.static = form, error, static or {}
