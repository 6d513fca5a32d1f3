"""Modules at dotted places inside others, which is how published key names become module paths."""

from torch import nn


class Place(nn.Module):
    """A place that published names pass through, and that computes nothing by itself."""


def put(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at ``root.path``; what is missing on the way becomes a ``Place``.

    One that is there already gives the module what stands in it.
    """
    *way, name = path.split(".")
    for step in way:
        if step not in root._modules:
            root.add_module(step, Place())
        root = root.get_submodule(step)
    before = root._modules.get(name)
    root.add_module(name, module)
    if isinstance(before, Place):
        for step, child in before.named_children():
            module.add_module(step, child)


def at(root: nn.Module, path: str) -> nn.Module:
    """The module at ``root.path``, whatever it was replaced by since."""
    for step in path.split("."):
        root = getattr(root, step)
    return root


def inside(place: str, path: str) -> str:
    """What a path is called by the module at ``place``, which it stands in; "" is the root."""
    return path.removeprefix(f"{place}.") if place else path


def shared_place(*paths: str) -> str:
    """The dotted start that all paths share, without their last part; empty if there is none."""
    start = []
    for parts in zip(*(path.split(".")[:-1] for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        start.append(parts[0])
    return ".".join(start)
