"""Annotations that this process has no class for: kept whole, so that nothing is lost."""

from typing import Any, ClassVar

from pydantic import ConfigDict, Field, field_validator

from qdc.ir.annotation import Annotation

DEEPEST = 32


class Opaque(Annotation):
    """An annotation of a tag that this process does not know: kept and named, never read."""

    model_config = ConfigDict(ser_json_bytes="hex")
    tag: ClassVar[str] = "opaque"
    on: ClassVar[tuple[str, ...]] = ()
    unknown_tag: str = Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=64)
    data: dict[str, Any]

    @field_validator("data")
    @classmethod
    def _plain(cls, data: dict[str, Any]) -> dict[str, Any]:
        _check_plain(data, DEEPEST)
        return data

    @property
    def fills(self) -> str:
        """A slot for each unknown tag, so that two on one node both survive."""
        return f"?{self.unknown_tag}"

    def text(self) -> str:
        """Say that it is unknown."""
        return f"unknown tag, {len(self.data)} fields kept"


def _check_plain(value: object, depth: int) -> None:
    if depth == 0:
        raise ValueError(f"nested deeper than {DEEPEST}")
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("a key is no text")
        value = list(value.values())
    if type(value) is list:
        for item in value:
            _check_plain(item, depth - 1)
    elif not isinstance(value, str | bytes | int | float | None):
        raise ValueError(f"holds a {type(value).__name__}")
