"""What passes write on nodes: frozen, closed classes, one for each tag.

A pass declares which of these it reads and which it provides. A quantizer adds its own in its own
file, by subclassing ``Annotation`` (``qdc.ir.annotation``) or ``Lowered`` (``qdc.format.codec``).
"""

from collections import Counter
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from qdc.ir.annotation import Annotation
from qdc.ir.types import Ratio, TensorRef, shape_text
from qdc.numerics.orders import HIGHEST_ORDER, LOWEST_ORDER

if TYPE_CHECKING:
    from qdc.ir.graph import Node

SHORT_LIST = 8
USUAL_GEOMETRY, NOISE_GEOMETRY, EQUAL = "mcs", "uniform-noise", "equal"
Width = Annotated[int, Field(gt=0)]
"""Columns of a block."""


OUTSIDE = "outside the repeated blocks"
"""Why a linear is kept that no pass was asked to quantize."""
TIED = "one tensor with the embedding"
"""Why a linear is kept whose weight is another node's: what becomes of it is decided there."""


class Kept(Annotation):
    """This layer stays as the checkpoint has it."""

    tag: ClassVar[str] = "kept"
    on: ClassVar[tuple[str, ...]] = ()
    reason: str

    def text(self) -> str:
        """The reason why it is kept."""
        return self.reason

    @classmethod
    def from_text(cls, text: str) -> "Kept":
        """The text is the reason."""
        return cls(reason=text)


class Moment(Annotation):
    """The uncentred second moment of the value that a stage reads."""

    tag: ClassVar[str] = "moment"
    scratch: ClassVar[bool] = True
    tensor: TensorRef
    """``f32[columns, columns]``: mean over all tokens of x x^T."""
    samples: int = Field(gt=0)
    tokens: int = Field(gt=0)
    masked: float = Field(ge=0, le=1)
    """Share of the tokens that were masked, or random."""
    geometry: str = Field(default=USUAL_GEOMETRY, pattern=r"^[a-z][a-z0-9-]*$", max_length=64)
    """Which tokens were masked."""
    masked_weight: float = Field(default=1, gt=0, allow_inf_nan=False)
    """What a masked token counts in the mean against a visible one."""
    token_weights: str = Field(default=EQUAL, pattern=r"^[a-z][a-z0-9-]*$", max_length=64)
    """What else tokens are weighed by."""
    routed: int | None = Field(default=None, ge=0)
    """Tokens that an expert saw, where they are too few and all tokens stand in for them."""
    left_out: int = Field(default=0, ge=0)
    """Tokens of the samples that count nothing: those of blocks behind the one in work."""

    @model_serializer(mode="wrap")
    def _without_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the last five out where they say nothing, as dumps before them did."""
        data: dict[str, Any] = dump(self)
        usual = {
            "geometry": USUAL_GEOMETRY,
            "masked_weight": 1,
            "token_weights": EQUAL,
            "routed": None,
            "left_out": 0,
        }
        return {k: v for k, v in data.items() if k not in usual or v != usual[k]}

    def text(self) -> str:
        """``f32[512,512]   128 samples, 32,768 tokens, 38% masked``."""
        shape = shape_text(self.tensor.dtype, self.tensor.shape)
        weight = "" if self.masked_weight == 1 else f" of weight {self.masked_weight:g}"
        geometry = "" if self.geometry == USUAL_GEOMETRY else f"   {self.geometry}"
        what = "noise" if self.geometry == NOISE_GEOMETRY else "masked"
        masked = f"{self.masked:.0%} {what}{weight}"
        pooled = "" if self.routed is None else f" pooled for {self.routed:,} routed"
        behind = f" and {self.left_out:,} left out" if self.left_out else ""
        tokens = f"{self.tokens:,} tokens{pooled}{behind}"
        weighed = "" if self.token_weights == EQUAL else f"   {self.token_weights}"
        return f"{shape}   {self.samples} samples, {tokens}, {masked}{geometry}{weighed}"

    def problems(self, node: "Node") -> Iterator[str]:
        """A moment is square, one row an input column."""
        if self.tensor.shape != (node.columns, node.columns):
            yield f"moment {self.tensor} does not fit {node.columns} input columns"


class Factor(Annotation):
    """Upper Cholesky factor of the damped, inverted moment."""

    tag: ClassVar[str] = "factor"
    scratch: ClassVar[bool] = True
    tensor: TensorRef
    """``f32[columns, columns]``, upper triangular U with inverse = U^T U."""
    damp: float = Field(ge=0, allow_inf_nan=False)
    """Share of the mean diagonal that was added."""
    attempts: int = Field(ge=0)
    """Factorizations tried; 0 if every input is dead."""
    dead: tuple[int, ...] = ()
    """Input columns that were zero on every token."""

    def text(self) -> str:
        """``f32[512,512]   damp 0.01   2 dead inputs``."""
        retried = f"   {self.attempts} attempts" if self.attempts > 1 else ""
        dead = f"   {len(self.dead)} dead inputs" if self.dead else ""
        shape = shape_text(self.tensor.dtype, self.tensor.shape)
        return f"{shape}   damp {self.damp:.4g}{retried}{dead}"

    def problems(self, node: "Node") -> Iterator[str]:
        """A factor is square, one row an input column."""
        if self.tensor.shape != (node.columns, node.columns):
            yield f"factor {self.tensor} does not fit {node.columns} input columns"
        if any(column not in range(node.columns) for column in self.dead):
            yield f"a dead input is outside 0..{node.columns - 1}"


class Salience(Annotation):
    """Importance summed over each block of a layer."""

    tag: ClassVar[str] = "salience"
    blocks: tuple[float, ...] = Field(min_length=1)
    widths: tuple[Width, ...] = Field(min_length=1)

    def text(self) -> str:
        """``4 blocks of 128   1.1e+03 .. 9.4e+03``."""
        low, high = min(self.blocks), max(self.blocks)
        return f"{_blocks_text(self.widths)}   {low:.1e} .. {high:.1e}"

    def problems(self, node: "Node") -> Iterator[str]:
        """One finite score a block; the blocks tile the columns."""
        yield from _tiling(self.widths, len(self.blocks), node)
        if not all(0 <= score < float("inf") for score in self.blocks):
            yield "a block score is negative or not finite"


class Orders(Annotation):
    """How many binary components each block gets."""

    tag: ClassVar[str] = "orders"
    blocks: tuple[int, ...] = Field(min_length=1)
    """One order a block, left to right; each order stores one sign bit a weight."""
    widths: tuple[Width, ...] = Field(min_length=1)
    """Columns of each block."""
    budget: Ratio | None = None
    """The exact mean order, counted in weights, that the allocation claims; None claims nothing."""
    scope: Literal["layer", "model"] = "layer"
    """Over what the budget is the mean: this layer, or all layers that say ``model``."""
    stored_bytes: int | None = Field(default=None, ge=0)
    """Most bytes that the packed layer may take; None allows any number."""

    @property
    def counts_signs(self) -> bool:
        """An order is a number of planes of signs."""
        return True

    @property
    def mean(self) -> float:
        """Mean order, counted in weights."""
        return self.total / sum(self.widths)

    @property
    def total(self) -> int:
        """Sign bits of one row."""
        return sum(order * width for order, width in zip(self.blocks, self.widths, strict=True))

    @model_validator(mode="after")
    def _same_length(self) -> "Orders":
        if len(self.blocks) != len(self.widths):
            raise ValueError(f"{len(self.blocks)} orders for {len(self.widths)} block widths")
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the last two out where they say nothing, as dumps before them did."""
        data: dict[str, Any] = dump(self)
        usual = {"scope": "layer", "stored_bytes": None}
        return {k: v for k, v in data.items() if k not in usual or v != usual[k]}

    def text(self) -> str:
        """``2 1 3 2   mean 2``."""
        return f"{runs(self.blocks)}   mean {self.mean:.4g}"

    def problems(self, node: "Node") -> Iterator[str]:
        """Orders are in range, tile the columns, and keep the budget that they claim."""
        yield from _tiling(self.widths, len(self.blocks), node)
        for order in sorted(set(self.blocks)):
            if not LOWEST_ORDER <= order <= HIGHEST_ORDER:
                yield f"order {order} is outside {LOWEST_ORDER}..{HIGHEST_ORDER}"
        if self.budget is None or self.scope == "model":
            return
        if self.total != self.budget * sum(self.widths):
            yield f"mean order {self.mean:.6g} breaks the strict budget of {self.budget}"


class Packed(Annotation):
    """The stored form of a layer, as the backend writes it."""

    tag: ClassVar[str] = "packed"
    of_weight: ClassVar[bool] = True
    on: ClassVar[tuple[str, ...]] = ("linear", "embedding")
    tensors: tuple[TensorRef, ...] = Field(min_length=1)
    suffixes: tuple[str, ...] = Field(min_length=1)
    """Name of each tensor after the layer's path."""
    payload_bits: int = Field(ge=0)
    """Bits of signs or codes, without padding."""
    weights: int = Field(gt=0)

    @property
    def nbytes(self) -> int:
        """Stored bytes: signs, scales, tags and padding."""
        return sum(ref.nbytes for ref in self.tensors)

    @property
    def sign_bits(self) -> float:
        """Sign (or code) bits a weight."""
        return self.payload_bits / self.weights

    @property
    def effective_bits(self) -> float:
        """Every stored bit a weight."""
        return 8 * self.nbytes / self.weights

    def text(self) -> str:
        """``11,265 B   2 code bits/weight   2.75 in all``."""
        return self.words(())

    def words(self, beside: Collection[Annotation]) -> str:
        """Sign bits if the layer was lowered to signs, or only its orders are known; or code bits.

        The stored form does not say so itself.
        """
        known = {note.fills: note.counts_signs for note in beside}
        kind = "sign" if known.get("lowered", known.get(Orders.tag)) else "code"
        return (
            f"{self.nbytes:,} B   {self.sign_bits:.4g} {kind} bits/weight   "
            f"{self.effective_bits:.4g} in all"
        )

    def problems(self, node: "Node") -> Iterator[str]:
        """The count of weights is the node's."""
        if self.weights != node.rows * node.columns:
            yield f"{self.weights} weights packed of {node.rows * node.columns}"
        if len(self.tensors) != len(self.suffixes):
            yield f"{len(self.suffixes)} names for {len(self.tensors)} packed tensors"


def runs(values: tuple[int, ...]) -> str:
    """``2 1 3 2``; a long list as its most frequent value and the exceptions."""
    if len(values) <= SHORT_LIST:
        return " ".join(map(str, values))
    (common, count), *_ = Counter(values).most_common(1)
    parts = [f"{common}x{count}"]
    for value in sorted(set(values) - {common}):
        places = [str(place) for place, found in enumerate(values) if found == value]
        parts.append(f"{value} at {' '.join(places)}")
    return ", ".join(parts)


def _blocks_text(widths: tuple[int, ...]) -> str:
    last = f" and {widths[-1]}" if widths[-1] != widths[0] else ""
    return f"{len(widths)} blocks of {widths[0]}{last}"


def _tiling(widths: tuple[int, ...], count: int, node: "Node") -> Iterator[str]:
    if sum(widths) != node.columns:
        yield f"block widths sum to {sum(widths)}, not to {node.columns} input columns"
    if len(widths) != count:
        yield f"{count} blocks for {len(widths)} block widths"


BUILT_IN: tuple[type[Annotation], ...] = (Kept, Moment, Factor, Salience, Orders, Packed)
