"""The ``quantization_config`` of an artifact as transformers carries it around."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from qdc.artifact.config import QUANTIZATION, parse_codec, parse_quantization
from qdc.artifact.digests import Digests
from qdc.checkpoint.compiled import METHOD
from qdc.hf.models import register_models
from qdc.pipeline.registry import standard_registry
from qdc.runtime.activations import refuse_activations

_plugins: list[Path] = []
_unverified = False


def use_plugins(*paths: str | Path) -> None:
    """Know codecs and families of these files, beside the built-in and the installed ones.

    Raises:
        QdcError: a file is missing, does not import, or defines nothing.
    """
    found = [*_plugins, *map(Path, paths)]
    register_models(standard_registry(found).families)
    _plugins[:] = found


def verify_files(wanted: bool = True) -> None:
    """Say whether artifacts must have the digests that they were written with, as they must."""
    global _unverified
    _unverified = not wanted


def digests_of(folder: Path) -> Digests:
    """The digests of an artifact's folder; those of nothing where none are wanted.

    Raises:
        InvalidArtifact: the file that holds them is damaged.
    """
    if _unverified:
        return Digests.unread(folder)
    found = Digests.of(folder)
    found.tell_missing()
    return found


class QdcQuantization(QuantizationConfigMixin):
    """All fields of the artifact, as they are, and what qdc reads of them."""

    quant_method = METHOD  # type: ignore[assignment]

    def __init__(self, fields: Mapping[str, Any]) -> None:
        """Check the fields.

        Raises:
            InvalidArtifact: they are damaged.
            QdcError: linears quantize what they read or give.
        """
        self.parsed = parse_quantization({QUANTIZATION: fields})
        refuse_activations(
            self.parsed.activations,
            "classes of transformers do not follow",
            "load it with qdc.load, or serve it with qdc serve",
            rotates=True,
        )
        known = standard_registry(_plugins).codecs()
        layers = self.parsed.layers.items()
        self.codecs = {layer: parse_codec(layer, given, known) for layer, given in layers}
        self._fields = deepcopy(dict(fields))

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Build from the fields; they are never taken for arguments or attributes."""
        made = cls(config_dict)
        return (made, kwargs) if return_unused_kwargs else made

    def to_dict(self) -> dict[str, Any]:
        """The fields as they stand in config.json, copied: transformers may change them."""
        return deepcopy(self._fields)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Pairs, so that ``dict`` gives the fields."""
        yield from self.to_dict().items()

    def rotation(self, layer: str) -> int | None:
        """Seed of the rotation of what a layer reads; None for none."""
        does = self.parsed.activations.get(layer)
        return None if does is None else does.rotation

    def below(self, prefix: str) -> "QdcQuantization":
        """What of it speaks of the modules below a prefix, by their names without it."""
        if not prefix:
            return self
        fields = self.to_dict()
        for field in ("layers", "activations"):
            if isinstance(fields.get(field), dict):
                fields[field] = {
                    name.removeprefix(prefix): value
                    for name, value in fields[field].items()
                    if name.startswith(prefix)
                }
        for field in ("added_biases", "modules_to_not_convert"):
            if isinstance(fields.get(field), list):
                fields[field] = _below(prefix, fields[field])
        if isinstance(fields.get("stages"), list):
            stages = (_below(prefix, stage) for stage in fields["stages"])
            fields["stages"] = [stage for stage in stages if stage]
        return QdcQuantization(fields)


def _below(prefix: str, names: object) -> list[str]:
    listed = names if isinstance(names, list) else []
    paths = (name for name in listed if isinstance(name, str))
    return [name.removeprefix(prefix) for name in paths if name.startswith(prefix)]
