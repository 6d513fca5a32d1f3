"""How the tensors of a layer are named: in files by its path, in the tensor table by its node.

A file's keys are ``path.weight`` before and ``path.signs`` after a compile; between passes a tensor
that belongs to a node, or to the value that a stage reads, is ``node:signs``.
"""

WEIGHT = "weight"


def file_key(path: str, part: str = WEIGHT) -> str:
    """Key of a tensor in a checkpoint or an artifact, from the full path of its module."""
    return f"{path}.{part}"


def layer_of(key: str) -> str:
    """Path of the module whose weight a key names; a key of anything else stays as it is."""
    return key.removesuffix(f".{WEIGHT}")


def table_key(name: str, part: str) -> str:
    """Key of a tensor that passes hand on, from the name of its node or value."""
    return f"{name}:{part}"
