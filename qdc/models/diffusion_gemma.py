"""DiffusionGemma: a mixture that writes a canvas from noise, behind a text that it reads causally.

Its vocabulary has no mask: a canvas starts as random tokens, and what is not sure becomes random
again. Source: transformers, ``models/diffusion_gemma``, as in
``tests/fixtures/published/diffusion-gemma``; shared facts on the ecosystem (A.4, B.3).
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from qdc.errors import UnsupportedModel
from qdc.ir.facts import ModelFacts
from qdc.models.canvas_decoder import CanvasDecoder
from qdc.models.canvas_sizes import (
    CANVAS,
    FIELDS,
    GLOBAL_HEADS,
    GLOBAL_WIDTH,
    HELD,
    KINDS,
    OVERRIDES,
    ROPES,
    TEXT,
    TIED,
    USUAL_CANVAS,
    CanvasSizes,
    read_canvas_sizes,
)
from qdc.models.family import Family, Proof, replays
from qdc.models.other_fields import refused_fields, shown_fields
from qdc.models.sizes import Sizes

INERT = ("vision_config", "boi_token_id", "eoi_token_id", "image_token_id")
"""Fields beside ``text_config`` that say how images are read."""
COMPILES = Proof(
    "compiled and reloaded, logits as of the decoded weights in the native class, at most 1e-4 off",
    "tests/e2e/test_canvas.py::test_compiles_reloads_and_equals_the_native_class",
)
DECODES = Proof(
    "canvases decided as transformers decides them, from the same noise, alone and in batches",
    "tests/runtime/decoding/test_canvas_decoding.py::test_decides_what_transformers_decides",
)


class CanvasFamily(Family):
    """A family whose configuration is nested, and whose models write on a canvas."""

    fills_masks: ClassVar[bool] = False

    @property
    def attention(self) -> str:
        """Which positions a position sees."""
        return (
            "text what is before it, the canvas all of the text and of itself; in sliding blocks "
            "the nearest text alone"
        )

    def sizes_of(self, config: Mapping[str, Any]) -> CanvasSizes:
        """Read what a ``config.json`` says.

        Raises:
            UnsupportedModel: it lacks a size, asks for a variant that is not implemented, or has
                an unknown field that sounds like arithmetic; all fields at fault are named.
        """
        sizes, problems = read_canvas_sizes(config)
        text = config.get(TEXT)
        problems += refused_fields(config, self.known, {})
        if isinstance(text, dict):
            problems += (f"{TEXT}.{each}" for each in refused_fields(text, KNOWN_OF_TEXT, {}))
        if problems or sizes is None:
            raise UnsupportedModel(
                f"config.json asks for a variant of {self.name} that is not implemented",
                where=problems,
            )
        return sizes

    def read(self, config: Mapping[str, Any]) -> Sizes:
        """Raise ``UnsupportedModel``: its sizes are in no table."""
        raise UnsupportedModel(f"models of the family {self.name} have no such sizes")

    @property
    def known(self) -> frozenset[str]:
        """Fields beside ``text_config`` that are read, held to a value, or without influence."""
        return frozenset((TEXT, CANVAS, TIED, *self.inert))

    def unused(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the fields that are set, and of which this family knows nothing."""
        self.sizes_of(config)
        inner = shown_fields(config.get(TEXT) or {}, KNOWN_OF_TEXT, {})
        return (*shown_fields(config, self.known, {}), *(f"{TEXT}.{name}" for name in inner))

    def assumed(self, config: Mapping[str, Any]) -> dict[str, object]:
        """The length of the canvas where the configuration is silent."""
        return {} if CANVAS in config else {CANVAS: USUAL_CANVAS}

    def build(self, config: Mapping[str, Any]) -> tuple[nn.Module, ModelFacts]:
        """Build the model of a configuration on the meta device. Raises ``UnsupportedModel``."""
        sizes = self.sizes_of(config)
        with torch.device("meta"):
            module = CanvasDecoder(sizes)
        facts = ModelFacts(
            family=self.name,
            mask_token_id=None,
            vocabulary=sizes.vocabulary,
            max_length=sizes.max_length,
            canvas=sizes.canvas,
            logit_cap=sizes.cap,
        )
        return module.eval().requires_grad_(False), facts


def _known_of_text() -> Iterator[str]:
    yield from FIELDS.values()
    yield from (KINDS, ROPES, OVERRIDES, GLOBAL_WIDTH, GLOBAL_HEADS)
    yield from HELD


KNOWN_OF_TEXT = frozenset(_known_of_text())
"""Fields of ``text_config`` that are read or held to a value."""

DIFFUSION_GEMMA = CanvasFamily(
    name="diffusion-gemma",
    architectures=("DiffusionGemmaForBlockDiffusion",),
    inert=INERT,
    end_token_id=1,
    decoding={"strategy": "renoise", "cache": "prefix"},
    published=("DiffusionGemma 26B-A4B-it",),
    proved=(replays("diffusion-gemma"), COMPILES, DECODES),
)
