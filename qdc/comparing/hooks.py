"""Look at, or change, what modules read and give while a model runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Look = Callable[[Tensor, Tensor], Tensor | None]
"""Gets the first input and the output of a module; what it returns, if anything, is the output."""


@contextmanager
def watching(model: nn.Module, looks: Mapping[str, Look]) -> Iterator[None]:
    """Let each of these submodules, named by path, be looked at after it has run."""
    handles = [
        model.get_submodule(path).register_forward_hook(_hook(look)) for path, look in looks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(look: Look) -> Callable[..., Tensor | None]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        return look(inputs[0], output)

    return hook
