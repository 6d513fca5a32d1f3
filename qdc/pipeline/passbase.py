"""What a pass is: a frozen model whose fields are its options, and a ``run`` over one unit.

The contract: a valid graph in, a valid graph out, anything in between. A pass reads and writes
annotations and tensors; it never prints, never forwards the model itself, and keeps its scratch
state in local variables.
"""

import inspect
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict

from qdc.ir.annotation import Annotation
from qdc.pipeline.preset import Preset

if TYPE_CHECKING:
    from qdc.ir.graph import LayerGraph
    from qdc.streaming.forecast import Forecast
    from qdc.streaming.unit import Unit

Kinds = tuple[type[Annotation], ...]


class Configured(BaseModel):
    """Something with a name and options: ``str()`` gives the text that rebuilds it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    """Verb with dashes, as in pipeline text."""

    def options(self) -> dict[str, Any]:
        """Options that differ from their defaults, by their names in pipeline text."""
        return {
            field.replace("_", "-"): getattr(self, field)
            for field, info in type(self).model_fields.items()
            if getattr(self, field) != info.get_default(call_default_factory=True)
        }

    def __str__(self) -> str:
        """``name`` or ``name{option=value option=value}``."""
        given = " ".join(f"{key}={option_text(value)}" for key, value in self.options().items())
        return f"{self.name}{{{given}}}" if given else self.name


def summary(kind: type[Configured]) -> str:
    """The first line of its docstring, which lists show."""
    return (inspect.getdoc(kind) or "").split("\n")[0].rstrip(".")


class Pass(Configured):
    """One rewriting step over the annotations of a layer graph.

    Subclasses set ``name``, ``requires`` and ``provides``, declare their options as pydantic
    fields with descriptions, and implement ``run``. The first line of the docstring is the
    summary that ``qdc passes`` prints.
    """

    requires: ClassVar[Kinds] = ()
    """Annotations that every layer of a unit must carry before the pass runs."""
    provides: ClassVar[Kinds] = ()
    """Annotations that every layer of a unit carries afterwards."""
    annotates: ClassVar[Kinds] = ()
    """Annotations that it writes on other nodes than the layers of its unit, or if asked to."""
    if_asked: ClassVar[Kinds] = ()
    """Those of ``annotates`` that every layer carries afterwards if an option asks for them."""
    consumes: ClassVar[Kinds] = ()
    """Annotations whose tensors are gone afterwards: no later pass can read them."""
    forbids: ClassVar[Kinds] = ()
    """Annotations that the pass would make wrong: none of them may be at hand when it runs."""
    rotates: ClassVar[bool] = False
    """Whether it turns the inputs of layers by rotations of its own, which no other may precede."""
    barrier: ClassVar[bool] = False
    """Whether it needs the whole model at once: everything before it is finished first."""
    whole_regions: ClassVar[bool] = False
    """Whether it needs a region at once: it cannot stand inside ``stages(...)``."""
    only_in_stages: ClassVar[bool] = False
    """Whether it makes no sense on whole regions: it stands inside ``stages(...)`` alone."""
    reads_calibration: ClassVar[bool] = False
    """Whether it draws samples from the calibration text."""
    divided: ClassVar[Literal["samples", "layers", "nothing"]] = "nothing"
    """What several processes split of its work: samples (``split`` streams, ``accumulate``), layers
    (``share``), or nothing, so that all do everything. ``qdc plan --ranks`` counts by it."""

    reads_all: ClassVar[bool] = True
    """Whether it may read lowered layers by other ways than its stream, ``Unit.current``, and in
    ``share`` the tensors of the given layers. Of several processes all then get the layers of the
    region before it runs, and those that it lowers; where not, only processes that read them."""

    presets: ClassVar[Mapping[str, Preset]] = {}
    """Pipelines that come with the pass, by the names under which users write them."""

    def needs(self) -> Kinds:
        """What it reads with these options: ``requires``, and what an option asks for."""
        return self.requires

    def gives(self) -> Kinds:
        """What it writes on every layer with these options: ``provides``, and what one adds."""
        return self.provides

    def whole_model(self) -> bool:
        """``barrier``, unless the options decide."""
        return self.barrier

    @property
    def idle(self) -> frozenset[str]:
        """Fields that nothing reads with the other options as they are: no option goes to them."""
        return frozenset()

    def check_later(self, later: "Sequence[Pass]") -> None:
        """Refuse passes behind it in the pipeline that its result is not meant for."""

    def check(self, graph: "LayerGraph") -> None:
        """Refuse a model that this pass cannot work on, before anything runs."""

    def without_masks(self) -> Self | None:
        """The pass with options that draw no masks: for models that have no mask token.

        Itself where it draws none; None where it works on masked positions alone.
        """
        return self

    def forecast(self, unit: "Forecast") -> None:
        """Say what ``run`` would hold, compute and store, from shapes alone: ``qdc plan`` asks.

        A pass that leaves this out is shown as unknown there.
        """
        unit.unknown()

    def run(self, unit: "Unit") -> None:
        """Rewrite the layers of one unit: a stage, a region, or the model for a barrier."""
        raise NotImplementedError(f"{type(self).__name__}.run")


def option_text(value: object) -> str:
    """An option's value as pipeline text; quoted where the grammar needs it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return option_text(value.value)
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, tuple | list):
        return ",".join(option_text(item) for item in value)
    text = str(value)
    plain = text and all(letter.isalnum() or letter in "._-*/?[]+:" for letter in text)
    if plain:
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
