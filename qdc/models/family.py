"""A model family as data: its key names, its configuration, and what was proved of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from qdc.errors import UnsupportedModel, nearest
from qdc.ir.facts import ModelFacts
from qdc.models.decoder import BIASED, Decoder, Layout
from qdc.models.names import Names
from qdc.models.other_fields import refused_fields, shown_fields
from qdc.models.sizes import Fields, Sizes, read_sizes
from qdc.models.variants import LAYER_TYPES, ROPES, SHARED


class Proof(NamedTuple):
    """One thing that was shown of a family, and the test that shows it again."""

    what: str
    test: str
    """``path/of/test_file.py::test_function``."""


COMPILES = Proof(
    "compiled and reloaded, logits as of the decoded weights in the native class, at most 1e-4 off",
    "tests/e2e/test_families.py::test_compiles_reloads_and_equals_the_native_class",
)


QWEN_INERT = ("sliding_window", "max_window_layers")
"""Fields of Qwen's configurations that are read only where ``use_sliding_window`` is true."""


def equals(native: str) -> Proof:
    """The proof that a family computes what a class of transformers computes."""
    return Proof(
        f"on random weights equal to {native}, fp32, at most 1e-5 off, with and without padding",
        "tests/models/test_equality.py::test_equals_the_native_class",
    )


def replays(*fixtures: str, code: str = "published code") -> Proof:
    """The proof that a family computes what the code computes that its models came with."""
    places = ", ".join(f"tests/fixtures/published/{name}" for name in fixtures)
    return Proof(
        f"on random weights equal to {code}, fp32, at most 1e-4 off: {places}",
        "tests/models/test_published.py::test_equals_the_published_code",
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Family:
    """One family that is built here, as tables; the defaults are those of the Qwen layout.

    Raises:
        ValueError: the tables contradict each other; all faults are named.
    """

    name: str
    architectures: tuple[str, ...]
    """Entries of ``architectures`` that it claims; ``model_type`` is not unique and never read."""
    names: Names = field(default=Names())
    """Key names of the tensors."""
    fields: Fields = field(default=Fields())
    """Fields of the configuration that give the sizes."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Sizes of a configuration that does not give them, by their names in ``Fields``."""
    variants: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """Fields of the configuration that choose a variant, each with the values that the decoder
    implements; every other value is refused."""
    inert: tuple[str, ...] = ()
    """Fields of the published configurations that change no logits, whatever their values."""
    biases: tuple[str, ...] = ()
    """Projections with biases, by their names in ``Names``."""
    rotates_early: bool = False
    """Whether the layer graph has the rotation of queries before the projection of keys."""
    logits_shift: int = 0
    """1 if position i of the logits predicts token i + 1."""
    mask_token_id: int | None = None
    """Used where the configuration has none; None if it must have one."""
    end_token_id: int | None = None
    """End of sequence where neither the tokenizer nor the configuration has one."""
    decoding: Mapping[str, object] = field(default_factory=dict)
    """Options of decoding of the published sampler, where they are not the usual ones:
    ``strategy``, and what it reads."""
    trained_length: int | None = None
    """Tokens that the published models were trained on, where their configurations claim more."""
    published_without: str = ""
    """Published code that puts no special tokens around a text, whatever its tokenizer would; empty
    where it leaves that to the tokenizer."""
    model_type: str = ""
    """``model_type`` of the published configurations, by which transformers finds the family
    (``qdc.hf``); empty if it shall not."""
    published: tuple[str, ...] = ()
    """Published models, with their sizes."""
    proved: tuple[Proof, ...] = ()
    """What was shown of it, and by which tests; ``qdc families`` prints them."""
    fills_masks: ClassVar[bool] = True
    """Whether its models fill masks; without, they take noise out of a canvas."""
    front_end: ClassVar[str] = "fx"
    """Who traces it: ``fx``, as every family that is built here."""

    def __post_init__(self) -> None:
        """Check the tables, so that what can be built is all that can be written down."""
        known = Fields().__dict__
        faults = [f"defaults: no size is called {n!r}; {nearest(n, known)}"
                  for n in self.defaults if n not in known]  # fmt: skip
        faults += [f"biases: {role!r} is none of {', '.join(BIASED)}"
                   for role in self.biases if role not in BIASED]  # fmt: skip
        # Whoever goes over a text takes it for a tuple of its characters.
        listed: dict[str, object] = {
            name: getattr(self, name) for name in ("architectures", "biases", "published", "inert")
        }
        listed |= {f"variants of {field}": values for field, values in self.variants.items()}
        faults += [f"{of}: {given!r} is no tuple, as ({given!r},) is"
                   for of, given in listed.items()
                   if not isinstance(given, tuple | list)]  # fmt: skip
        if not self.architectures:
            faults.append("architectures: there is none to recognise it by")
        if self.logits_shift not in (0, 1):
            faults.append(f"logits_shift: {self.logits_shift} is neither 0 nor 1")
        normed = bool(self.fields.head_norms or self.defaults.get("head_norms"))
        mixture = bool(self.fields.experts or self.defaults.get("experts"))
        shared = bool(self.fields.shared_experts or self.defaults.get("shared_experts"))
        faults += [
            f"names: {problem}"
            for problem in self.names.problems(head_norms=normed, mixture=mixture, shared=shared)
        ]
        if faults:
            raise ValueError(f"the family {self.name}: {'; '.join(faults)}")

    @property
    def attention(self) -> str:
        """Which positions a position sees."""
        told, usual = self.fields.block, self.defaults.get("block")
        if told:
            also = "" if usual is None else f" or {usual}"
            return f"block-causal, {told} of the configuration{also}"
        return "all positions" if usual is None else f"block-causal, blocks of {usual}"

    def read(self, config: Mapping[str, Any]) -> Sizes:
        """Read what a ``config.json`` says.

        Raises:
            UnsupportedModel: it lacks a size, asks for a variant that is not implemented, or has
                an unknown field that sounds like arithmetic; all fields at fault are named.
        """
        usual = {} if self.mask_token_id is None else {"mask_token": self.mask_token_id}
        sizes, problems = read_sizes(config, self.fields, {**usual, **self.defaults}, self.variants)
        # Without sizes nothing can be compared, and what is wrong with them is told already.
        alike = {name: config.get(name) for name in REPEATED} if sizes is None else _alike(sizes)
        problems += refused_fields(config, self.known, alike)
        if problems or sizes is None:
            raise UnsupportedModel(
                f"config.json asks for a variant of {self.name} that is not implemented",
                where=problems,
            )
        return sizes

    @property
    def known(self) -> frozenset[str]:
        """Fields of a configuration that are read, held to a value, or without influence."""
        held = (*self.variants, *SHARED, *ROPES, LAYER_TYPES)
        return frozenset((*self.fields.present().values(), *held, *self.inert))

    def unused(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the fields that are set, and of which this family knows nothing."""
        return shown_fields(config, self.known, _alike(self.read(config)))

    def assumed(self, config: Mapping[str, Any]) -> dict[str, object]:
        """Mask token and attention block where the configuration is silent: field, then value."""
        sizes, table = self.read(config), self.fields.present()
        silent = (size for size in ASSUMED if size in table and table[size] not in config)
        return {table[size]: getattr(sizes, size) for size in silent}

    def network(self, sizes: Sizes) -> Decoder:
        """Build the decoder where torch puts new tensors, with whatever weights it gives them."""
        layout = Layout(self.names, self.biases, self.rotates_early, self.logits_shift)
        return Decoder(sizes, layout)

    def build(self, config: Mapping[str, Any]) -> tuple[nn.Module, ModelFacts]:
        """Build the model of a configuration on the meta device. Raises ``UnsupportedModel``."""
        sizes = self.read(config)
        with torch.device("meta"):
            module = self.network(sizes)
        return module.eval().requires_grad_(False), self.facts(sizes)

    def facts(self, sizes: Sizes) -> ModelFacts:
        """What a graph says about a model of these sizes."""
        return ModelFacts(
            family=self.name,
            mask_token_id=sizes.mask_token,
            vocabulary=sizes.rows,
            max_length=min(sizes.max_length, self.trained_length or sizes.max_length),
            logits_shift=self.logits_shift,
            attention_block=sizes.block,
        )


ASSUMED = ("mask_token", "block")
"""Sizes that published configurations leave to the code beside them, and that no tensor shows."""
ROTATED = "rotary_dim"
REPEATED = (*Fields().present().values(), ROTATED)
"""Names that most configurations of transformers have for sizes, and that may stand beside a
family's own."""


def _alike(sizes: Sizes) -> dict[str, object]:
    """Sizes under these names."""
    told = {
        "key_heads": sizes.key_heads or sizes.heads,
        "head_width": sizes.head_columns,
        **sizes.model_dump(exclude={"key_heads", "head_width"}),
    }
    alike = {name: told[size] for size, name in Fields().present().items()}
    return {**alike, ROTATED: sizes.rotated_columns}


class Refusal(NamedTuple):
    """A known family that is not compiled."""

    name: str
    architectures: tuple[str, ...]
    reason: str
    help: str
