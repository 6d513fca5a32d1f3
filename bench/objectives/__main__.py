"""The command line of the study."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

import bench.objectives
import qdc
from bench.common.clocks import Stopwatch
from bench.common.files import write
from bench.common.processes import EMBEDDED, ROOT
from bench.objectives.explain import explain
from bench.objectives.gradient import Curvature, slopes
from bench.objectives.measure import (
    Spectrum,
    measure,
    reference,
    spectral,
    stage_moments,
    stretched,
)
from bench.objectives.model import Samples, Subject, Weights
from bench.objectives.plots import draw
from bench.objectives.population import SEED, Variant, compiled, population
from bench.objectives.rise import Gap
from bench.objectives.tables import tables
from bench.peers.result import load as load_peer

FRESH = 1000
"""Seed of states that no version has seen; they come from the same text."""
SEEN_WINDOWS, FRESH_WINDOWS, HELD_WINDOWS, GRADIENT_WINDOWS = 12, 20, 16, 12
STRETCH_WINDOWS = 48
RATIOS = {"0.5": (64, (0, 1)), "0.15": (16, (0,)), "0.85": (16, (0,))}
"""Held-out windows and mask seeds by mask ratio."""
EXPLAINED = (
    "rtn-64",
    "fit-exact-w3",
    "feedback-damp1",
    "feedback",
    "feedback-polish",
    "autoround",
)
"""Versions that are taken apart; ``autoround`` is the name of a peer, if one is given."""

PEER_FAMILIES = {"hqq": "rounding"}
"""Peers that look at no states are with those of ours that do not."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, explain, draw."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.objectives", description=bench.objectives.__doc__
    )
    parser.add_argument("--model", type=Path, default=EMBEDDED)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a result of bench.peers, made with seed 0",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "quality")
    parser.add_argument("--only", nargs="+", help="names of versions; all if not given")
    parser.add_argument("--skip-explain", action="store_true", help="no experiments")
    given = parser.parse_args(arguments)
    variants = population()
    peers = dict(text.split("=", 1) for text in given.peer)
    variants += [
        Variant(name, PEER_FAMILIES.get(name, "library"), folder) for name, folder in peers.items()
    ]
    if given.only:
        variants = [variant for variant in variants if variant.name in given.only]
    subject = Subject(given.model)
    rows = measured(subject, variants, given.cache)
    explained = None
    if not given.skip_explain:
        versions = {
            variant.name: version_of(subject, variant, given.cache)
            for variant in sorted(variants, key=lambda variant: _rank(variant.name))
            if variant.name in EXPLAINED
        }
        explained = explain(subject, versions, given.cache / "explained.json")
    spectrum = Spectrum(subject, _fresh(subject, FRESH_WINDOWS)).shares()
    summary = {"versions": rows, "spectrum": spectrum, "explained": explained}
    write(json.dumps(_short(summary)) + "\n", given.out / "objectives.json")
    write(tables(summary), given.out / "objectives-tables.md")
    draw(summary, given.out)


def measured(subject: Subject, variants: list[Variant], cache: Path) -> list[dict[str, object]]:
    """Measure every version; one row each, from the cache where it has one."""
    folder = cache / "measures"
    bench: Bench | None = None
    rows = []
    for variant in variants:
        file = folder / f"{variant.name}.json"
        if not file.is_file():
            bench = bench or Bench(subject)
            with Stopwatch() as watch:
                row = bench.row(variant, version_of(subject, variant, cache))
            write(json.dumps(row, indent=1) + "\n", file)
            print(f"{variant.name}: rise {row['rise 0.5']:.4f}, {watch.seconds:.0f} s", flush=True)
        rows.append(json.loads(file.read_text("utf-8")))
    return rows


def version_of(subject: Subject, variant: Variant, cache: Path) -> Weights:
    """Weights of a version: compiled, or what a library left."""
    if variant.family == "library":
        return load_peer(Path(variant.pipeline)).weights
    found = subject.version(qdc.load(compiled(variant, subject.folder, cache)))
    if not variant.stretched_from:
        return found
    seen = subject.calibration(SEED, variant.samples, variant.geometry).spread(STRETCH_WINDOWS)
    return stretched(subject, found, stage_moments(subject, seen))


class Bench:
    """Everything that does not depend on the version."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.gaps = {
            ratio: Gap(subject, [subject.held_out(windows, float(ratio), s) for s in seeds])
            for ratio, (windows, seeds) in RATIOS.items()
        }
        fresh = _fresh(subject, FRESH_WINDOWS)
        self.references = {
            "fresh": reference(subject, fresh),
            "held": reference(subject, subject.held_out(HELD_WINDOWS, 0.5, 0)),
        }
        self.spectrum = Spectrum(subject, fresh)
        self.curvature = Curvature(subject, slopes(subject, _fresh(subject, GRADIENT_WINDOWS)))

    def row(self, variant: Variant, version: Weights) -> dict[str, object]:
        """All figures of one version."""
        subject = self.subject
        row: dict[str, object] = {
            "name": variant.name,
            "family": variant.family,
            "pipeline": variant.pipeline,
        }
        for ratio, gap in self.gaps.items():
            row[f"rise {ratio}"], row[f"error {ratio}"] = gap.of(version)
        seen = subject.calibration(SEED, variant.samples, variant.geometry).spread(SEEN_WINDOWS)
        sets = {"seen": reference(subject, seen), **self.references}
        for name, states in sets.items():
            for what, value in measure(subject, version, states).items():
                row[f"{name}: {what}"] = value
        row |= {f"fresh: {k}": v for k, v in spectral(subject, version, self.spectrum).items()}
        row |= {f"fresh: {k}": v for k, v in self.curvature.measure(version).items()}
        return row


def _short(value: object) -> object:
    """The same with five digits of each number, which is more than is known."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _short(part) for key, part in value.items()}
    return [_short(part) for part in value] if isinstance(value, list | tuple) else value


def _rank(name: str) -> int:
    return EXPLAINED.index(name) if name in EXPLAINED else len(EXPLAINED)


def _fresh(subject: Subject, windows: int) -> Samples:
    return subject.calibration(FRESH, 128).spread(windows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
