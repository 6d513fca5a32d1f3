"""What calibration states and weights came to: counts for people, for JSON, for the report."""

from typing import Literal

from pydantic import Field

from qdc.ir.types import Frozen


class TokenCertainty(Frozen):
    """How sure the original model was of the tokens of a calibration, and what they weigh."""

    rule: str = Field(max_length=64)
    """How confidence becomes a weight."""
    tokens: int = Field(ge=1)
    masked: float | None = Field(default=None, ge=0, le=1)
    """Mean confidence at masked tokens; None where none is masked."""
    visible: float | None = Field(default=None, ge=0, le=1)
    """The same at visible tokens."""
    least: float = Field(gt=0, allow_inf_nan=False)
    """Smallest weight of a token."""
    most: float = Field(gt=0, allow_inf_nan=False)
    """Largest weight of a token."""

    @property
    def said(self) -> str:
        """In words."""
        means = [
            f"{mean:.2f} at {kind} ones"
            for kind, mean in (("masked", self.masked), ("visible", self.visible))
            if mean is not None
        ]
        return (
            f"{self.rule}: {self.tokens:,} tokens weigh {self.least:.3g} to {self.most:.3g}; "
            f"mean confidence {', '.join(means)}"
        )


class SampledStates(Frozen):
    """States that were taken of the model's own denoising trajectories."""

    strategy: str = Field(max_length=256)
    """That the sampler decides by."""
    way: Literal["ratio", "step"]
    """What measures how far a trajectory has come: places decided, or steps."""
    trajectories: int = Field(ge=0)
    asked: tuple[int, ...]
    """States of each stretch of the way, from the start on."""
    drawn: tuple[int, ...] = ()
    """Of each stretch, as they were found; empty in a forecast."""
    strayed: int = Field(default=0, ge=0)
    """States of another stretch, for trajectories that have none in the one asked for."""
    repeated: int = Field(default=0, ge=0)
    """States that equal another one of their trajectory."""
    sweeps: int = Field(default=0, ge=0)
    """Runs of the original model over the samples that were not done."""

    @property
    def said(self) -> tuple[str, ...]:
        """In words."""
        numbers = self.drawn or self.asked
        parts = " + ".join(f"{number:,}" for number in numbers)
        way = "mask ratio" if self.way == "ratio" else "step"
        found = [
            f"tmas: {parts} states by {way}, of {self.trajectories:,} trajectories "
            f"of {self.strategy}"
        ]
        if self.drawn:
            found.append(f"sampled in {self.sweeps:,} sweeps of the model")
        return tuple(found)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should change."""
        found = []
        if self.strayed:
            asked = ", ".join(f"{number:,}" for number in self.asked)
            found.append(
                f"{self.strayed:,} of {sum(self.asked):,} states lie in another stretch of the way "
                f"than asked ({asked}): their trajectories skip it; raise steps, or length"
            )
        if self.repeated:
            found.append(
                f"{self.repeated:,} of {sum(self.asked):,} states repeat another one of their "
                "trajectory; raise steps, or samples instead of timesteps"
            )
        return tuple(found)
