"""What passes have to say about layers, for the report and the end of a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Remark:
    """What a pass has to say about one layer."""

    kind: str
    """``passed``, ``missed`` or ``note``."""
    step: str
    layer: str
    details: dict[str, object]

    def plain(self) -> dict[str, object]:
        """The details as plain data: numbers stay numbers, all else is text."""
        return {
            key: value if value is None or isinstance(value, int | float) else str(value)
            for key, value in self.details.items()
        }

    def __str__(self) -> str:
        """``passed daq-lower %h0.q error=1.3e-02``."""
        known = {key: value for key, value in self.details.items() if value is not None}
        details = " ".join(f"{key}={_short(value)}" for key, value in known.items())
        return f"{self.kind} {self.step} %{self.layer} {details}".rstrip()


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
