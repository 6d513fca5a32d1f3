"""The quality benchmark: what is a job, what is kept, what is computed and shown."""

import math
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import qdc
from bench.common.files import write
from bench.common.markdown import END, MARK, replace_part
from bench.common.statistics import spearman
from bench.curve import page as curve
from bench.quality import ablations, cases, targets
from bench.quality.__main__ import main
from bench.quality.cases import METHOD, Case
from bench.quality.compared import PARTS
from bench.quality.jobs import Job, Settings, resolve
from bench.quality.page import write_page
from bench.quality.tables import method_table
from qdc.comparing import runner
from qdc.comparing.labels import spread_labels
from qdc.comparing.measure import drift, losses
from qdc.comparing.result import Cost, Drift, Layer, Losses, Result, read
from qdc.comparing.runner import Listener, finished, pending, result_path, run_all
from qdc.comparing.statistics import difference, gap, quotient, rise, window_error
from qdc.evaluation.evaluate import compare, held_out_windows
from qdc.frontend.opening import open_model
from qdc.text.source import read_text
from qdc.text.tokenizer import encoder, load_tokenizer
from tests.support.checkpoints import EMBEDDED

PAGE = Path(__file__).parents[2] / "docs" / "quality.md"
KINDS = ("q_proj", "attn_out", "ff_out")
WINDOWS = 8
OTHERS = {drawn for _, drawn in (*PARTS.values(), *curve.PARTS.values())}
"""Pictures of other parts, which bench.quality.compared and bench.curve write."""


def stub(
    level: float, *, seed: int = 0, noise: float = 0.0, digest: str = "", **given: object
) -> Result:
    """A result whose gap is about ``level`` at ratio 0.5."""
    draw = random.Random(repr((level, seed)))
    original, candidate = [], []
    for ratio in (0.15, 0.5, 0.85):
        tokens = tuple(round(100 * ratio) + window for window in range(WINDOWS))
        due = tuple(3.0 * count + 5 * window for window, count in enumerate(tokens))
        own = level * (1 + noise * draw.uniform(-1, 1))
        found = tuple(
            loss + count * own * 2 * ratio * (1 + noise * draw.uniform(-1, 1))
            for loss, count in zip(due, tokens, strict=True)
        )
        original.append(Losses(ratio=ratio, tokens=tokens, losses=due))
        candidate.append(Losses(ratio=ratio, tokens=tokens, losses=found))
    names = [f"blocks.{depth}.{kind}" for kind in KINDS for depth in range(6)]
    error = {name: level * draw.uniform(0.5, 1.5) for name in names}
    fields: dict[str, object] = {
        "digest": digest,
        "name": "stub",
        "seed": seed,
        "what": "stub",
        "version": "qdc 1",
        "created": "2026-01-02T03:04:05+00:00",
        "environment": {"qdc": "1", "python": "3", "torch": "2", "machine": "abacus, 2 cores"},
        "cost": Cost(
            seconds=10 * level, processor_seconds=8 * level, peak_bytes=10**8, threads=1,
            load=(0.5, 0.5, 0.5),
        ),
        "sign_bits": 2.0,
        "effective_bits": 2.14 + draw.choice((0, 0.11, 0.14, 0.235)),
        "file_bytes": 3 * 10**6,
        "layers": {
            n: Layer(kind=n, error=e, orders=tuple(draw.choice((1, 2, 2, 3)) for _ in range(6)))
            for n, e in error.items()
        },
        "passes": {"pack": 0.1},
        "candidate": tuple(candidate),
        "original": tuple(original),
        "drift": Drift(layers=error, regions=(level, 2 * level), divergence=level),
    }  # fmt: skip
    return Result.model_validate(fields | given)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        model=EMBEDDED,
        held_out=EMBEDDED / "heldout.jsonl",
        out=tmp_path / "out",
        peers_python=tmp_path / "nothing",
    )


def jobs_of(settings: Settings, *given: Case, seeds: Sequence[int] = (0,)) -> list[Job]:
    return list(resolve(given, seeds, settings))


def method(name: str, pipeline: str, **given: object) -> Case:
    return replace(Case(METHOD, "baseline", name, pipeline=pipeline), **given)  # type: ignore[arg-type]


def test_every_variant_of_the_ablations_is_a_pipeline(settings: Settings) -> None:
    jobs = list(resolve(ablations.cases(), [0], settings))
    assert {job.path: job.missing for job in jobs if job.missing} == {}
    for ablation in ablations.ablations():
        assert ablation.base in ablation.variants, ablation.question
    paths = [job.path for job in jobs]
    assert len(set(paths)) == len(paths)


def test_variants_of_one_question_differ(settings: Settings) -> None:
    for ablation in ablations.ablations():
        found = {j.work.digest for j in resolve(ablation.cases(), [0], settings) if j.work}
        assert len(found) == len(ablation.variants), ablation.question


def test_what_qdc_lacks_is_missing_and_the_rest_goes_on(settings: Settings) -> None:
    jobs = jobs_of(
        settings,
        method("new", "stages(calibrate-mcs,tomorrow-lower),pack"),
        method("option", "rtn-lower{flavour=3},pack"),
        Case(METHOD, "library", "hqq", peer="hqq"),
        method("there", "rtn-lower,pack"),
    )
    missing = [job.missing for job in jobs]
    assert "tomorrow-lower" in missing[0]
    assert "flavour" in missing[1]
    assert "no interpreter" in missing[2]
    assert [job.path for job in jobs if job.work] == ["method/there"]


def test_digest_follows_what_changes_figures_and_nothing_else(settings: Settings) -> None:
    sampled = "stages(calibrate-mcs,rtn-lower),pack"

    def digest(pipeline: str = sampled, seed: int = 0, **given: object) -> str:
        changed = replace(settings, **given)  # type: ignore[arg-type]
        [job] = jobs_of(changed, method("any", pipeline), seeds=(seed,))
        assert job.work is not None
        return job.work.digest

    same = digest()
    assert same == digest("stages(calibrate-mcs,rtn-lower{bits=2}),pack")
    assert same == digest(peers_python=Path("elsewhere"))
    others = [
        digest(seed=1), digest(tag="b"), digest(windows=8), digest(samples=16),
        digest("stages(calibrate-mcs,rtn-lower{group=64}),pack"),
    ]  # fmt: skip
    assert len({same, *others}) == 6


def test_what_samples_nothing_is_one_job(settings: Settings) -> None:
    jobs = jobs_of(settings, method("free", "rtn-lower,pack"), seeds=(0, 1, 2))
    assert [(job.path, job.seed) for job in jobs] == [("method/free", None)]


def test_number_of_samples_leaves_pipelines_alone_that_name_one(settings: Settings) -> None:
    text = "stages(calibrate-mcs{samples=32},rtn-lower),pack"
    [job] = jobs_of(replace(settings, samples=4), method("named", text))
    assert job.work is not None
    assert "samples=32" in job.work.what


def test_run_goes_on_where_it_stopped(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    both = [method("a", "rtn-lower,pack"), method("b", "rtn-lower{group=64},pack")]
    jobs = jobs_of(settings, *both)
    ran: list[str] = []

    def work(job: Job, out: Path, threads: int, told: Listener, ended: threading.Event) -> Result:
        assert job.work is not None
        ran.append(job.case.name)
        if job.case.name == "b" and len(ran) < 3:
            raise RuntimeError("exit status 1\nno memory")
        result = stub(0.1, digest=job.work.digest)
        write(result.model_dump_json(), result_path(out, job.work))
        return result

    monkeypatch.setattr(runner, "run_job", work)
    first = run_all(pending(settings.out, jobs), settings.out, 1, 1)
    assert (first.done, first.failed) == (1, {"method/b": "exit status 1\nno memory"})
    assert list(finished(settings.out, jobs)) == ["method/a"]
    second = run_all(pending(settings.out, jobs), settings.out, 1, 1)
    assert (second.done, second.failed, ran) == (1, {}, ["a", "b", "b"])
    assert pending(settings.out, jobs) == []


def test_equal_work_is_done_once_and_damaged_results_again(settings: Settings) -> None:
    twins = jobs_of(settings, method("a", "rtn-lower,pack"), method("b", "rtn-lower{bits=2},pack"))
    [job] = pending(settings.out, twins)
    assert job.work is not None
    path = result_path(settings.out, job.work)
    write(stub(0.1).model_dump_json(), path)
    assert pending(settings.out, twins) == []
    assert set(finished(settings.out, twins)) == {"method/a", "method/b"}
    path.write_text(path.read_text(encoding="utf-8")[:100], encoding="utf-8")
    assert pending(settings.out, twins) == [job]


def test_failed_process_leaves_its_last_lines(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    [job] = jobs_of(settings, method("a", "rtn-lower,pack"))
    seen: list[int] = []

    def fail(command: Sequence[str], threads: int, *rest: object) -> tuple[int, str]:
        seen.append(threads)
        return 3, "first\nout of luck\n"

    monkeypatch.setattr(runner, "call", fail)
    outcome = run_all([job], settings.out, 1, 7)
    assert outcome.failed == {"method/a": "exit status 3\nfirst\nout of luck"}
    assert seen == [7]


def test_process_gets_its_threads_and_ends_when_told_to() -> None:
    code = "import os, sys; sys.exit(os.environ['OMP_NUM_THREADS'])"
    assert runner.call([sys.executable, "-c", code], 5) == (1, "5\n")
    sleeping = "import time; print('here', flush=True); time.sleep(60)"
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(runner.call, [sys.executable, "-c", sleeping], 1)
        while not runner._children:
            time.sleep(0.01)
        runner.stop_children()
        status, _ = future.result(timeout=20)
    assert status == -signal.SIGTERM
    assert not runner._children


def test_losses_are_those_of_an_evaluation() -> None:
    facts = open_model(EMBEDDED)[1].graph.model
    model, other = (qdc.load_original(EMBEDDED) for _ in range(2))
    other.get_submodule("model.transformer.blocks.0").attn_out.weight.mul_(0.5)  # type: ignore[union-attr, operator]
    encode = encoder(load_tokenizer(EMBEDDED))
    windows = held_out_windows(read_text(EMBEDDED / "heldout.jsonl").documents, encode, 32, 4)
    due = compare(other, model, windows, facts.mask)
    mine = [losses(m, windows, facts.mask) for m in (other, model)]
    result = stub(1).model_copy(update={"candidate": mine[0], "original": mine[1]})
    for row in due.differences:
        found = rise(result, row.ratio)
        assert found.mean == pytest.approx(row.rise, abs=1e-9)
        assert found.error == pytest.approx(row.standard_error, abs=1e-9)


def test_drift_is_nothing_for_the_original_and_found_where_it_is() -> None:
    graph = open_model(EMBEDDED)[1].graph
    model, other = (qdc.load_original(EMBEDDED) for _ in range(2))
    windows = torch.randint(5, 500, (3, 24), generator=torch.Generator().manual_seed(0))
    none = drift(other, model, graph, windows, graph.model.mask)
    assert {*none.layers.values(), *none.regions, none.divergence} == {0.0}
    node = next(node for node in graph.layers() if node.name == "blocks.3.up_proj")
    other.get_parameter(f"{node.path}.weight").mul_(0.9)
    found = drift(other, model, graph, windows, graph.model.mask)
    assert found.layers.pop(node.name) == pytest.approx(0.01, rel=1e-3)
    assert set(found.layers.values()) == {0.0}
    assert found.regions[:3] == (0, 0, 0)
    assert min(found.regions[3:]) > 0
    assert found.divergence > 0


def test_rise_is_a_mean_over_tokens_with_an_error_over_windows() -> None:
    losses_ = [Losses(ratio=0.5, tokens=(1, 3), losses=given) for given in ((2.0, 9.0), (1.0, 3.0))]
    result = stub(1).model_copy(update={"candidate": (losses_[0],), "original": (losses_[1],)})
    found = rise(result)
    assert found.mean == 7 / 4
    # The windows' rises 1 and 6 are 3/4 away from 7/4 times their tokens.
    assert found.error == pytest.approx(math.sqrt(2 * (9 / 16) * 2) / 4)


def test_difference_in_pairs_is_surer_than_each_side() -> None:
    a, b = [stub(0.2, noise=0.3)], [stub(0.2, noise=0.3)]
    assert difference(a, b).error == 0
    assert window_error(a) > 0
    shifted = [stub(0.2, noise=0.3, seed=1)]
    assert difference(a, shifted).mean == pytest.approx(gap(a).mean - gap(shifted).mean)


def test_different_masks_are_no_pair() -> None:
    a, b = stub(0.1), stub(0.2)
    moved = [part.model_copy(update={"tokens": (9,) * WINDOWS}) for part in b.candidate]
    with pytest.raises(ValueError, match="different masks"):
        difference([a], [b.model_copy(update={"candidate": tuple(moved)})])


def test_quotient_pairs_the_seeds() -> None:
    here = [stub(0.1, seed=0), stub(0.2, seed=1)]
    there = [stub(0.4, seed=1), stub(0.2, seed=0)]
    ratio = quotient(here, there)
    assert ratio.mean == pytest.approx(0.5)
    assert ratio.deviation == pytest.approx(0)
    assert math.isnan(quotient(here[:1], there[1:]).deviation)


def test_rank_correlation_shares_ranks_and_ignores_scale() -> None:
    assert spearman([1, 10, 100], [0.1, 0.2, 0.9]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 1, 2, 2], [1, 2, 3, 4]) == pytest.approx(2 / math.sqrt(5))


@pytest.mark.parametrize(("level", "verdict"), [(0.07, True), (0.08, False)])
def test_targets_are_judged_by_the_measured_gaps(level: float, verdict: bool) -> None:
    found = {"method/release": [stub(0.1)], "method/default": [stub(level)]}
    first, *_ = targets.targets(found)
    assert first.met is verdict
    assert f"{level:.4f} / 0.1000" in first.measured


def test_targets_without_results_are_open() -> None:
    assert {target.met for target in targets.targets({})} == {None}


def test_knapsack_is_compared_with_the_best_ratio_beyond_noise() -> None:
    group = "ablation/allocation, blocks of 128/"
    paths = {"abmp 0%": 0.3, "abmp 5%": 0.1, "knapsack stage": 0.11, "knapsack model": 0.09}
    found = {group + name: [stub(level, noise=0.01)] for name, level in paths.items()}
    verdicts = {t.text: t for t in targets.targets(found) if "knapsack" in t.text}
    stage, model = (verdicts[k] for k in sorted(verdicts, reverse=True))
    assert (stage.met, model.met) == (False, True)
    assert "of abmp 5%" in stage.measured


def test_times_are_judged_by_what_ran_alone() -> None:
    found = {"method/default": [stub(50)], "method/release": [stub(1)]}
    assert all(t.met is None for t in targets.targets(found) if "compile" in t.text)
    found = {"timing/default": [stub(5)], "timing/release": [stub(1)]}
    verdicts = {t.text: t.met for t in targets.targets(found) if t.met is not None}
    assert list(verdicts.values()) == [False, True]


def test_table_sorts_methods_and_shows_seeds() -> None:
    methods = {"worse": [stub(0.2)], "better": [stub(0.1), stub(0.102, seed=1)]}
    lines = method_table(methods, {"worse": "baseline", "better": "preset"}).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["`better`", "worse"]
    assert "0.1010 ± 0.0014" in lines[2]
    assert "0.2000 |" in lines[3]
    assert len({line.count("|") for line in lines}) == 1


def test_labels_keep_their_order_and_distance() -> None:
    wanted = [0.5, 0.1, 0.52, 0.51, 0.9]
    placed = spread_labels(wanted, 0.1)
    ranked = sorted(range(5), key=lambda i: wanted[i])
    gaps = [placed[b] - placed[a] for a, b in pairwise(ranked)]
    assert min(gaps) >= 0.1 - 1e-9
    assert (placed[1], placed[4]) == (0.1, 0.9)


def test_part_is_replaced_between_its_marks_alone() -> None:
    text = f"a\n{MARK.format('x')}\nold\n{END}\nb\n{MARK.format('y')}\nold\n{END}\n"
    found = replace_part(text, "y", r"new \1")
    assert found == text[::-1].replace("dlo", "\n1\\ wen\n", 1)[::-1]
    with pytest.raises(ValueError, match="0 parts called 'z'"):
        replace_part(text, "z", "")


def test_page_is_written_from_results_and_the_frame_stays(
    settings: Settings, tmp_path: Path
) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    frame = PAGE.read_text(encoding="utf-8")
    (docs / "quality.md").write_text(frame, encoding="utf-8")
    few = [case for case in ablations.cases() if re.match("damping|allocation.*128", case.group)]
    wanted = [*cases.methods(), *few, *cases.timings()]
    jobs = list(resolve(wanted, [0, 1], replace(settings, peers_python=Path(__file__))))
    draw = random.Random(0)
    results = {
        j.path: stub(draw.uniform(0.05, 0.3), seed=j.seed or 0, noise=0.05) for j in jobs if j.work
    }
    write_page(jobs, results, docs, settings)
    text = (docs / "quality.md").read_text(encoding="utf-8")
    assert re.sub(r"(-->\n).*?(<!-- end)", r"\1\2", text, flags=re.DOTALL) == re.sub(
        r"(-->\n).*?(<!-- end)", r"\1\2", frame, flags=re.DOTALL
    )
    assert "| date | 2026-01-02 |" in text
    pictures = re.findall(r"\(quality/([\w-]+\.svg)\)", text)
    for drawn in OTHERS & set(pictures):
        pictures.remove(drawn)
    assert sorted(pictures) == sorted(path.name for path in (docs / "quality").iterdir())
    assert len(pictures) == 5
    for name in pictures:
        drawing = (docs / "quality" / name).read_text(encoding="utf-8")
        assert drawing.lstrip().startswith("<?xml"), name
    assert "autoround" in (docs / "quality" / "loss-by-bits.svg").read_text(encoding="utf-8")
    before = {path: path.read_bytes() for path in docs.rglob("*.*")}
    write_page(jobs, results, docs, settings)
    assert {path: path.read_bytes() for path in docs.rglob("*.*")} == before


def test_page_without_results_says_so(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "quality.md").write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    write_page([], {}, tmp_path, settings)
    text = (tmp_path / "quality.md").read_text(encoding="utf-8")
    assert "Nothing has been run." in text
    pictures = re.findall(r"!\[.*\]\(quality/(.*)\)", text)
    assert {drawn for _, drawn in PARTS.values()} <= set(pictures) <= OTHERS


def test_list_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["--list", "--only", "^method/(data-free|hqq)", "--out", str(out)]) == 0
    assert "data-free" in capsys.readouterr().out
    assert not out.exists()


def test_result_of_another_version_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write(stub(0.1).model_dump_json(), path)
    assert read(path) == stub(0.1)
    path.write_text(path.read_text(encoding="utf-8").replace('"what"', '"that"'), encoding="utf-8")
    assert read(path) is None
