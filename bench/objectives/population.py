"""Quantized versions of one model that differ in character: what the objectives are judged on."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import qdc
from bench.common.pipelines import overrides, pipeline

SEED = 0
"""Seed of the states that the versions are compiled with; other seeds give fresh states."""


@dataclass(frozen=True)
class Variant:
    """One way to quantize the model."""

    name: str
    family: str
    """``rounding``, ``block fit``, ``feedback`` or ``polish``: which colour it has in the plots."""
    pipeline: str
    samples: int = 128
    geometry: str = "mcs"
    stretched_from: str = ""
    """Name of the version whose rows are stretched to make this one; see ``measure.stretched``."""


def population() -> list[Variant]:
    """Return the versions; each differs in one or two things from one of its family."""
    block_fit = "feedback=false"
    found = [
        Variant(f"rtn-{group}", "rounding", f"rtn-lower{{group={group}}},pack")
        for group in (128, 64, 32)
    ]
    for compensation, weights in (("none", (1, 3)), ("diag", (3,)), ("exact", (1, 3, 9))):
        for weight in weights:
            options = f"{block_fit} compensation={compensation} outlier-weight={weight}"
            found.append(_daq(f"fit-{compensation}-w{weight}", "block fit", options))
    found += [
        _daq("fit-greedy", "block fit", f"{block_fit} fit=greedy outlier-weight=1 sweeps=0"),
        _daq("fit-clean", "block fit", block_fit, geometry="clean"),
        _daq("fit-n8", "block fit", block_fit, samples=8),
        _daq("feedback", "feedback"),
        _daq("feedback-first", "feedback", "rounds=0 code-sweeps=0"),
        _daq("feedback-w1", "feedback", "outlier-weight=1"),
        _daq("feedback-block64", "feedback", sensitivity="block=64"),
        _daq("feedback-clean", "feedback", geometry="clean"),
        _daq("feedback-masked4", "feedback", calibration="masked-weight=4"),
    ]
    found += [
        _daq(f"feedback-damp{damp}", "feedback", sensitivity=f"damp={damp}")
        for damp in ("0.1", "1")
    ]
    found += [_daq(f"feedback-n{n}", "feedback", samples=n) for n in (8, 32)]
    polish = ",polish{iterations=25}"
    found += [
        _daq("fit-polish", "polish", block_fit, after=polish),
        _daq("feedback-polish", "polish", after=polish),
        _daq("feedback-n16-polish", "polish", after=polish, samples=16),
        _daq("polish-masked4", "polish", after=",polish{iterations=25 masked-weight=4}"),
    ]
    by_name = {variant.name: variant for variant in found}
    found += [
        replace(by_name[name], name=f"{name}-stretched", stretched_from=name)
        for name in ("feedback", "feedback-w1", "feedback-damp1", "fit-exact-w3")
    ]
    return found


def compiled(variant: Variant, model: Path, cache: Path) -> Path:
    """Return the artifact's folder, compiling it if the cache lacks it."""
    out = cache / (variant.stretched_from or variant.name)
    if (out / "config.json").is_file():
        return out
    shutil.rmtree(out, ignore_errors=True)
    given: dict[str, Any] = {**overrides(variant.pipeline, SEED, variant.samples)}
    qdc.compile(model, variant.pipeline, out=out, write_report=False, **given)
    return out


def _daq(
    name: str,
    family: str,
    options: str = "",
    *,
    sensitivity: str = "",
    calibration: str = "",
    geometry: str = "mcs",
    samples: int = 128,
    after: str = "",
) -> Variant:
    calibrate = f"geometry={geometry} {calibration}".strip()
    text = pipeline(calibrate=calibrate, sensitivity=sensitivity, daq=options, after=after)
    return Variant(name, family, text, samples, geometry)
