"""How many binary components a block may have."""

from typing import Final

LOWEST_ORDER: Final = 1
HIGHEST_ORDER: Final = 4
