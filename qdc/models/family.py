"""What is known of a model family, beside its code: how it is built, and what was proved of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from qdc.ir.graph import ModelFacts

Build = Callable[[Mapping[str, Any]], tuple[nn.Module, ModelFacts]]
"""From a ``config.json`` to a module without weights. Raises ``pydantic.ValidationError``."""


class Proof(NamedTuple):
    """One thing that was shown of a family, and the test that shows it again."""

    what: str
    test: str
    """``path/of/test_file.py::test_function``."""


COMPILES = Proof(
    "compiled and reloaded, logits as of the decoded weights in the native class, at most 1e-4 off",
    "tests/e2e/test_families.py::test_compiles_reloads_and_equals_the_native_class",
)


def equals(native: str) -> Proof:
    """The proof that a family computes what a class of transformers computes."""
    return Proof(
        f"on random weights equal to {native}, fp32, at most 1e-5 off, with and without padding",
        "tests/models/test_equality.py::test_equals_the_native_class",
    )


@dataclass(frozen=True)
class Family:
    """One family with an implementation of our own, traced by ``torch.fx``."""

    name: str
    architectures: tuple[str, ...]
    """Entries of ``architectures`` that it claims; ``model_type`` is not unique and never read."""
    build: Build
    published: tuple[str, ...]
    """Published models, with their sizes."""
    attention: str
    """Which positions a position sees."""
    mask_token_id: int | None
    """Used where the configuration has none; None if it must have one."""
    logits_shift: int
    """1 if position i of the logits predicts token i + 1."""
    proved: tuple[Proof, ...]

    front_end: str = "fx"


class Refusal(NamedTuple):
    """A known family that is not compiled."""

    name: str
    architectures: tuple[str, ...]
    reason: str
    help: str
