"""Bounds of what a ``config.json`` may ask for, of whichever family or front end."""

from typing import Annotated

from pydantic import Field

DEEPEST = 1024
MOST_EXPERTS = 1 << 15
"""Experts of all blocks together: each is a few modules, so their number decides the memory."""
BEST_OF_GROUP = 2
"""Experts of a group by whose scores it is chosen."""
Width = Annotated[int, Field(gt=0, le=1 << 24)]
"""A size that no allocation on the meta device trips over."""
Depth = Annotated[int, Field(gt=0, le=DEEPEST)]
"""A number of blocks that can be traced."""
Count = Annotated[int, Field(gt=0, le=(1 << 31) - 1)]
"""A number that tensors of whole numbers can be compared with and divided by."""
