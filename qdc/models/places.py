"""Modules at dotted places inside others, which is how published key names become module paths."""

from collections.abc import Callable

from torch import Tensor, nn


class Part(nn.Module):
    """A place that published names pass through, such as ``self_attn``.

    It computes what it is handed: values between the layers are named after the place in which they
    are computed.
    """

    def forward(self, compute: Callable[..., Tensor], *given: Tensor | None) -> Tensor:
        """Compute ``compute(*given)`` here."""
        return compute(*given)


def put(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at ``root.path``; what is missing on the way becomes a ``Part``."""
    *way, name = path.split(".")
    for step in way:
        if step not in root._modules:
            root.add_module(step, Part())
        root = root.get_submodule(step)
    root.add_module(name, module)


def at(root: nn.Module, path: str) -> nn.Module:
    """The module at ``root.path``, whatever it was replaced by since."""
    for step in path.split("."):
        root = getattr(root, step)
    return root


def within(
    root: nn.Module, path: str, compute: Callable[..., Tensor], *given: Tensor | None
) -> Tensor:
    """Compute ``compute(*given)`` in the part at ``root.path``, or in ``root`` itself."""
    found: Tensor = at(root, path)(compute, *given) if path else compute(*given)
    return found
