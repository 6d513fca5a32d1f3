"""A model that several others are compared with: what it has predicted is kept, and computed once.

Kept are the states in front of the head, which are smaller than logits by the ratio of vocabulary
to width; the head multiplies them again, which gives the very same logits. They are on the host, up
to a limit; what is beyond it is computed again whenever it is asked for.
"""

from collections.abc import Callable
from hashlib import sha256

from torch import Tensor, nn

from qdc.models.window import current_window

LIMIT = 1 << 30
"""Bytes of states that are kept on the host."""


class Recalled:
    """A model with a memory. It may be called as the model itself, and then it keeps nothing."""

    def __init__(self, model: Callable[[Tensor], Tensor], limit: int = LIMIT) -> None:
        """Remember a model that does not change.

        Args:
            model: a module, or what calls one; must not be trained or cast from now on.
            limit: bytes that are kept.
        """
        self.model, self.left = model, limit
        self.logits_shift = int(getattr(model, "logits_shift", 0))
        self.module: nn.Module | object = getattr(model, "module", model)
        self.computed = self.recalled = 0
        """How often the model was run, and how often it need not be."""
        self._kept: dict[bytes, Tensor] = {}

    def __call__(self, tokens: Tensor) -> Tensor:
        """All logits of the model."""
        return self.model(tokens)

    def states(self, asked: tuple[Tensor, ...], compute: Callable[[], Tensor]) -> Tensor:
        """What is kept of a call, or what ``compute`` gives.

        Args:
            asked: tensors that say what the call is about, beside the window in force.
            compute: runs the model: ``[positions, width]`` on its device.
        """
        window = current_window()
        seen = () if window is None else (window.positions, window.visible)
        key = sha256(type(window).__name__.encode())
        for each in (*asked, *seen):
            key.update(str(tuple(each.shape)).encode())
            key.update(each.cpu().contiguous().numpy().tobytes())
        found = self._kept.get(key.digest())
        if found is not None:
            self.recalled += 1
            return found
        self.computed += 1
        found = compute()
        if found.nbytes <= self.left:
            self._kept[key.digest()] = found.to("cpu", copy=True)
            self.left -= found.nbytes
        return found
