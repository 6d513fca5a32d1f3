"""The curve: what is interpolated, what is judged, what is run, what is shown."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from bench.common.jobs import LIBRARY_WORKER
from bench.curve import judgement, promises
from bench.curve.__main__ import main
from bench.curve.cases import LIBRARY, OURS, TYPES, Case, best_at, libraries, ours
from bench.curve.jobs import Job, Settings, resolve, setup
from bench.curve.judgement import Point, curve_at, front, verdicts
from bench.curve.page import write_page
from bench.curve.tables import summary, verdict_table
from qdc.comparing.result import Result
from qdc.pipeline.builder import build_plan
from qdc.pipeline.registry import standard_registry
from tests.bench.test_quality import PAGE, stub
from tests.support.checkpoints import EMBEDDED


def made(gap: float, bits: float, *, seed: int | None = 0, noise: float = 0.0) -> Result:
    """A result of such a gap at ratio 0.5."""
    return stub(gap, seed=seed or 0, noise=noise).model_copy(
        update={"effective_bits": bits, "seed": seed}
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        model=EMBEDDED,
        out=tmp_path / "out",
        calibration=None,
        held_out=EMBEDDED / "heldout.jsonl",
        peers_python=Path(__file__),
        windows=4,
    )


def test_curve_is_log_linear_between_points_of_the_front() -> None:
    points = [Point("b", 3, 0.01), Point("a", 2, 0.04), Point("worse", 2.5, 0.05)]
    assert [point.name for point in front(points)] == ["a", "b"]
    found = curve_at(points, 2.5)
    assert found is not None
    assert found.gap == pytest.approx(0.02)
    assert found.between == ("a", "b")


def test_curve_ends_before_its_first_point_and_is_level_behind_its_last() -> None:
    points = [Point("a", 2, 0.04), Point("b", 3, 0.01)]
    assert curve_at(points, 1.99) is None
    assert curve_at([], 2) is None
    beyond = curve_at(points, 3.4)
    assert beyond is not None
    assert beyond == judgement.Ours(0.01, ("b",))
    at_a_point = curve_at(points, 2)
    assert at_a_point is not None
    assert at_a_point.gap == pytest.approx(0.04)


def test_curve_is_linear_where_a_point_has_no_gap() -> None:
    found = curve_at([Point("a", 2, 0.04), Point("b", 3, -0.02)], 2.5)
    assert found is not None
    assert found.gap == pytest.approx(0.01)


@pytest.mark.parametrize(("gap", "above"), [(0.0301, True), (0.0299, False)])
def test_a_point_lies_above_by_a_third_of_its_gap_or_it_does_not(gap: float, above: bool) -> None:
    own = {"a": [made(0.04, 2)], "b": [made(0.01, 3)]}
    (found,) = verdicts(own, {"peer": [made(gap, 2.5)]}, 0.5)
    assert found.ours is not None
    assert found.ours.gap == pytest.approx(0.02)
    assert found.ratio == pytest.approx(0.02 / gap)
    assert found.judged
    assert found.above is above
    assert found.nearest == "a"
    assert found.apart is not None
    assert found.apart.mean == pytest.approx(gap - 0.04)


def test_points_of_few_or_many_bits_are_not_judged() -> None:
    own = {"a": [made(0.04, 2)]}
    theirs = {"few": [made(0.1, 1.2)], "before": [made(0.1, 1.8)], "many": [made(0.01, 3.6)]}
    few, before, many = verdicts(own, theirs, 0.5)
    assert (few.judged, before.judged, many.judged) == (False, True, False)
    assert before.ours is None
    shown = verdict_table([few, before, many])
    assert shown.count("not judged") == 3
    assert "No point" in summary([few, before, many])


def test_a_point_is_held_against_our_curve_of_its_own_seeds() -> None:
    own = {
        "a": [made(0.04, 2, seed=0), made(0.02, 2, seed=1)],
        "b": [made(0.01, 3, seed=0)],
    }
    one, both = (
        verdicts(own, {"peer": [made(0.1, 2, seed=seed) for seed in seeds]}, 0.5)[0]
        for seeds in ((1,), (0, 1))
    )
    seedless = verdicts(own, {"peer": [made(0.1, 2, seed=None)]}, 0.5)[0]
    found = [each.ours.gap for each in (one, both, seedless) if each.ours is not None]
    assert found == pytest.approx([0.02, 0.03, 0.03])


def test_what_does_not_lie_above_is_named_with_its_reason() -> None:
    own = {"a": [made(0.04, 2, noise=0.9)], "b": [made(0.02, 3)]}
    theirs = {
        "near": [made(0.04, 2.1, noise=0.9)],
        "better": [made(0.01, 2.6)],
        "far": [made(0.2, 2.2)],
    }
    found = verdicts(own, theirs, 0.5)
    said = summary(found)
    assert said.startswith("1 of 3 points")
    assert re.search("- near: .* noise", said)
    assert re.search("- better: .* below it beyond noise", said)
    assert "- far" not in said
    assert "All 1 points" in summary([v for v in found if v.point.name == "far"])


def test_a_promise_is_about_the_best_library_of_no_fewer_bits() -> None:
    own = {"rates 2": [made(0.04, 2.0)], "default": [made(0.05, 2.3)]}
    theirs = {
        "coarse": [made(0.01, 1.9)],
        "good": [made(0.1, 2.1)],
        "worse": [made(0.2, 2.2)],
        "wide": [made(0.01, 2.4)],
    }
    causal = [*promises.CAUSAL]
    found = [promises._target(promise, own, theirs, 0.5) for promise in causal]
    assert [each.met for each in found] == [True, None, None]  # rates 2.2 was not run
    assert "0.1000 of good at 2.100: 0.40" in found[0].measured
    theirs["good"] = [made(0.08, 2.1)]
    assert promises._target(causal[0], own, theirs, 0.5).met is False
    (small,) = (each for each in promises.MASKED if each.other)
    against = {small.other: [made(0.06, 2.14)]}
    assert promises._target(small, {"small": [made(0.05, 1.5)]}, against, 0.5).met is False
    assert promises._target(small, {"small": [made(0.04, 1.5)]}, against, 0.5).met is True


def test_every_case_of_ours_is_a_pipeline_that_can_be_run(settings: Settings) -> None:
    shared = setup(settings)
    jobs = list(resolve(ours(causal=False), [0, 1], shared, settings.peers_python))
    assert not [job.missing for job in jobs if job.work is None]
    assert {"small", "best", "large", "default"} <= {job.case.name for job in jobs}
    digests = {job.path: job.work.digest for job in jobs if job.work is not None}
    kinds = {name: digest for name, digest in digests.items() if "uniform" not in name}
    assert len(set(kinds.values())) == len(kinds)


def test_rates_between_the_presets_are_of_the_preset_itself() -> None:
    assert best_at(3) == str(build_plan("large", standard_registry()))
    cases = {case.name: case.pipeline for case in ours(causal=False)}
    assert cases["rates 2.25"] == best_at(2.25) != best_at(2.5)


def test_llama_cpp_is_padded_only_where_rows_do_not_fit() -> None:
    fitting, ragged = ([case.name for case in libraries(widths)] for widths in ([256], [256, 576]))
    assert set(ragged) - set(fitting) == {f"llama.cpp {kind}, padded" for kind in TYPES}


def test_ragged_rows_are_missing_where_a_library_takes_whole_groups(settings: Settings) -> None:
    shared = setup(settings)
    jobs = list(resolve(libraries([576]), [0], shared, settings.peers_python))
    missing = [job.case.name for job in jobs if job.work is None]
    assert missing == ["GPTQ 2 bits g128", "GPTQ 3 bits g128"]
    assert all("576" in job.missing for job in jobs if job.work is None)


def test_libraries_are_missing_without_their_interpreter(
    settings: Settings, tmp_path: Path
) -> None:
    nowhere = tmp_path / "none"
    jobs = list(resolve(libraries([256]), [0], setup(settings), nowhere))
    assert all(job.work is None for job in jobs)
    assert {job.missing for job in jobs} == {f"no interpreter at {nowhere}, see bench/README.md"}


def test_options_and_samples_of_a_library_are_in_its_digest(settings: Settings) -> None:
    def digest(case: Case, given: Settings) -> str:
        (job,) = resolve([case], [0], setup(given), given.peers_python)
        assert job.work is not None
        assert job.module == LIBRARY_WORKER
        return job.work.digest

    case = Case("x", peer="autoround", options={"bits": 2})
    same = Case("y", peer="autoround", options={"bits": 2, "group_size": 128})
    other = Case("x", peer="autoround", options={"bits": 3})
    assert digest(case, settings) == digest(same, settings)
    assert digest(case, settings) != digest(other, settings)
    assert digest(case, settings) != digest(case, replace(settings, samples=7))


def test_page_is_written_with_its_plot_and_says_what_is_not_run(
    settings: Settings, tmp_path: Path
) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "quality.md").write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    shared = setup(settings)
    some = [*ours(causal=False), *libraries([256])]
    jobs: list[Job] = list(resolve(some, [0, 1], shared, settings.peers_python))
    bits = {"small": 1.5, "best": 2.0, "large": 3.0}
    results = {
        job.path: made(0.02 if job.case.family == OURS else 0.1, bits.get(job.case.name, 2.3),
                       seed=job.seed, noise=0.1)
        for job in jobs
        if "IQ1_M" not in job.path
    }  # fmt: skip
    write_page(jobs, results, docs, settings, shared)
    text = (docs / "quality.md").read_text(encoding="utf-8")
    assert "quality/curve-masked.svg" in text
    assert "- not run: llama.cpp IQ1_M (seeds 0, 1)" in text
    drawn = (docs / "quality" / "curve-masked.svg").read_text(encoding="utf-8")
    assert "AutoRound 2 bits g128" in drawn
    written = {path: path.read_bytes() for path in docs.rglob("*.*")}
    write_page(jobs, results, docs, settings, shared)
    assert {path: path.read_bytes() for path in docs.rglob("*.*")} == written


def test_list_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["--list", "--only", f"^({OURS}/best|{LIBRARY}/HQQ)", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert f"{OURS}/best/seed2" in shown
    assert not out.exists()


def test_a_folder_that_is_no_model_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--list", "--model", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "error[QDC" in capsys.readouterr().err
