"""What the configurations of all families have in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

DEEPEST = 1024
MOST_EXPERTS = 1 << 15
"""Experts of all blocks together: each is a few modules, so their number decides the memory."""
Width = Annotated[int, Field(gt=0, le=1 << 24)]
"""A size that no allocation on the meta device trips over."""
Depth = Annotated[int, Field(gt=0, le=DEEPEST)]
"""A number of blocks that can be traced."""


class ModelConfig(BaseModel):
    """The fields of a ``config.json`` that decide the network; all others are ignored.

    A field that selects a variant is declared with the values that are implemented, so every other
    value is refused by name.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)
