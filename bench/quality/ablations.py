"""The ablations: each variant is pipeline text that differs in one option from its group's base."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bench.common.pipelines import pipeline, step

from .cases import ABLATION, Case

RELEASE_LIKE = "feedback=false"
"""Options of daq-lower that leave the paper's fit as it is."""
START = "sweeps=0 outlier-weight=1 feedback=false"

BASE = pipeline()
"""DAQ with error feedback and nothing else: no drift taken back, no polish, the vocabulary as it
is. ``drifting`` varies what ``default`` adds to it."""


@dataclass(frozen=True)
class Ablation:
    """One question; ``variants`` are pipelines by name, the one called ``base`` among them."""

    question: str
    base: str
    variants: dict[str, str]

    def cases(self) -> Iterator[Case]:
        """Its variants as cases."""
        for name, text in self.variants.items():
            yield Case(ABLATION, self.question, name, pipeline=text, base=name == self.base)


def ablations() -> tuple[Ablation, ...]:
    """All questions, in the order of the page."""
    return (*_drift(), *_calibration(), *_allocation(), *_fit(), *_around())


def cases() -> Iterator[Case]:
    """All variants of all questions."""
    for ablation in ablations():
        yield from ablation.cases()


def drifting(
    *, cross: str = "", damp: float = 0.1, asymmetry: float = 1, sensitivity: str = ""
) -> str:
    """``default`` without the vocabulary, with other options."""
    options = " ".join(filter(None, (f"damp={damp:g}", sensitivity)))
    return (
        f"stages({step('calibrate-cross', cross)},sensitivity{{{options}}},abmp-allocate,"
        f"daq-lower{{asymmetry={asymmetry:g}}}),pack"
    )


def _drift() -> Iterator[Ablation]:
    yield Ablation(
        "drift of the inputs taken back",
        "all of it",
        {
            "nothing": pipeline(sensitivity="damp=0.1"),
            "half": drifting(asymmetry=0.5),
            "all of it": drifting(),
            "without the residual stream": drifting(cross="residual=false"),
        },
    )
    yield Ablation(
        "damping, drift taken back",
        "0.1",
        {f"{damp:g}": drifting(damp=damp) for damp in (0.01, 0.03, 0.1, 0.3, 1)},
    )
    yield Ablation(
        "calibration geometry, drift taken back",
        "mcs",
        {
            name: drifting(cross="" if name == "mcs" else f"geometry={name}")
            for name in ("mcs", "uniform", "block-diffusion", "rollout", "clean")
        },
    )


def _calibration() -> Iterator[Ablation]:
    yield Ablation(
        "calibration geometry",
        "mcs",
        {
            name: pipeline(calibrate="" if name == "mcs" else f"geometry={name}")
            for name in ("mcs", "uniform", "block-diffusion", "rollout", "clean")
        },
    )
    yield Ablation(
        "calibration geometry, no feedback",
        "mcs",
        {
            name: pipeline(calibrate="" if name == "mcs" else f"geometry={name}", daq=RELEASE_LIKE)
            for name in ("mcs", "uniform", "clean")
        },
    )
    yield Ablation("visible prefix", "0", _each("calibrate", "prefix", (0, 0.25, 0.5), 0))
    yield Ablation("samples", "128", _each("calibrate", "samples", (16, 32, 64, 128, 256), 128))
    weights = (0.25, 1, 4)
    yield Ablation("weight of masks", "1", _each("calibrate", "masked-weight", weights, 1))


KNAPSACK = "measure-orders,allocate"


def _allocation() -> Iterator[Ablation]:
    for block in (128, 64):
        given = "" if block == 128 else f"block={block}"
        variants = {
            f"abmp {ratio}%": pipeline(
                sensitivity=given,
                allocate="abmp-allocate" if ratio == 5 else f"abmp-allocate{{ratio={ratio / 100}}}",
            )
            for ratio in (0, 5, 10, 15, 20, 33)
        }
        variants |= {
            "knapsack layer": pipeline(sensitivity=given, allocate=f"{KNAPSACK}{{scope=layer}}"),
            "knapsack layer, every gain": pipeline(
                sensitivity=given, allocate=f"{KNAPSACK}{{scope=layer least-gain=0}}"
            ),
            "knapsack stage": pipeline(sensitivity=given, allocate=KNAPSACK),
            "knapsack stage, costs of the plain fit": pipeline(
                sensitivity=given, allocate="measure-orders{how=fit},allocate"
            ),
            "knapsack model": _whole_model(given, "scope=model"),
            "knapsack model, loss": (
                f"{step('probe-loss', given)},{_whole_model(given, 'scope=model weights=loss')}"
            ),
        }
        yield Ablation(f"allocation, blocks of {block}", "abmp 5%", variants)
    budgets = {
        f"{budget:g}": pipeline(
            allocate=KNAPSACK if budget == 2 else f"{KNAPSACK}{{budget={budget:g}}}"
        )
        for budget in (1.75, 2, 2.25, 2.5, 3)
    }
    budgets["2, every bit counted"] = pipeline(allocate=f"{KNAPSACK}{{count=effective}}")
    yield Ablation("budget of the knapsack", "2", budgets)


def _whole_model(sensitivity: str, allocate: str) -> str:
    """Orders from full-precision statistics of the whole model, then the base's stages."""
    measured = step("sensitivity", sensitivity)
    return (
        f"calibrate-mcs,{measured},measure-orders,allocate{{{allocate}}},"
        f"stages(calibrate-mcs,{measured},daq-lower),pack"
    )


def _fit() -> Iterator[Ablation]:
    yield Ablation(
        "steps of the fit",
        "joint refits",
        {
            "start only": pipeline(daq=START),
            "greedy refits": pipeline(daq="fit=greedy outlier-weight=1 feedback=false"),
            "joint refits": pipeline(daq="outlier-weight=1 feedback=false"),
            "with outliers": pipeline(daq=RELEASE_LIKE),
            "with feedback": pipeline(daq="outlier-weight=1"),
            "with both": BASE,
        },
    )
    for name, extra in (("", ""), (", no feedback", RELEASE_LIKE)):
        weights = _each("daq", "outlier-weight", (1, 2, 3, 4, 9), 3, extra)
        yield Ablation(f"weight of outliers{name}", "3", weights)
    yield Ablation(
        "sigma of outliers, no feedback", "2", _each("daq", "sigma", (2, 2.5, 3), 2, RELEASE_LIKE)
    )
    damps = (0.001, 0.01, 0.03, 0.1, 0.3, 1)
    yield Ablation("damping", "0.01", _each("sensitivity", "damp", damps, 0.01))
    yield Ablation("block size", "128", _each("sensitivity", "block", (64, 128, 256), 128))
    ways = ("none", "diag", "exact")
    yield Ablation("compensation", "exact", _each("daq", "compensation", ways, "exact"))
    yield Ablation(
        "compensation, no feedback",
        "exact",
        _each("daq", "compensation", ways, "exact", RELEASE_LIKE),
    )
    yield Ablation("error feedback", "true", _each("daq", "feedback", ("true", "false"), "true"))
    yield Ablation("sweeps over codes", "1", _each("daq", "code-sweeps", (0, 1, 3), 1))
    yield Ablation("rounds of refits", "2", _each("daq", "rounds", (0, 1, 2, 4), 2))
    orders = ("natural", "activation")
    yield Ablation("order of columns", "natural", _each("daq", "order", orders, "natural"))
    yield Ablation("bits of a scale", "16", _each("daq", "scale-bits", (16, 8), 16))


def _around() -> Iterator[Ablation]:
    yield Ablation(
        "bits of the vocabulary",
        "16",
        {"16": BASE} | {str(b): pipeline(before=f"quantize-vocab{{bits={b}}},") for b in (8, 4)},
    )
    yield Ablation(
        "polish iterations",
        "0",
        {"0": BASE}
        | {str(n): pipeline(after=f",polish{{iterations={n}}}") for n in (25, 50, 100, 200)},
    )
    yield Ablation(
        "polish from",
        "feedback",
        {
            "start only": pipeline(daq=START, after=",polish"),
            "release-like fit": pipeline(daq=RELEASE_LIKE, after=",polish"),
            "feedback": pipeline(after=",polish"),
            "clean states": pipeline(after=",polish{geometry=clean}"),
            "gptq clip g128": "stages(calibrate-mcs,sensitivity,"
            "gptq-lower{search=clip zero=packed}),polish,pack",
        },
    )


def _each(
    step: str, option: str, values: Iterable[object], base: object, extra: str = ""
) -> dict[str, str]:
    """One variant for each value of an option; the base leaves the option out."""
    found = {}
    for value in values:
        given = [f"{option}={value}"] if value != base else []
        found[str(value)] = pipeline(**{step: " ".join([*given, *([extra] if extra else [])])})
    return found
