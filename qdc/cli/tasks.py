"""``qdc eval --tasks``: tasks of the lm-evaluation-harness."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console

from qdc.cli.evaluate import PROBE, split
from qdc.cli.models import REFERENCE, Opened, open_runnable
from qdc.cli.sheets import Sheet, print_sheet, spread
from qdc.cli.terminal import console, print_json, print_lines, progress
from qdc.errors import QdcError
from qdc.evaluation.harness.likelihood import default_scorer, require_masks
from qdc.evaluation.harness.results import (
    MetricDifference,
    TaskComparison,
    TaskRun,
    Values,
    differences,
    document_values,
    metrics,
)
from qdc.evaluation.harness.subject import Subject
from qdc.evaluation.harness.tasks import Tasks
from qdc.evaluation.options import OF_LIKELIHOODS, EvaluationOptions
from qdc.ir.facts import ModelFacts
from qdc.pipeline.registry import standard_registry
from qdc.runtime.decoding.strategies import make_strategy

GENERATION = "generate_until"


class Asked(NamedTuple):
    """What one run asks of every model."""

    options: EvaluationOptions
    tasks: Tasks
    wants_greedy: bool
    scored: bool
    """Whether a task asks for likelihoods."""


def tasks_command(options: EvaluationOptions, *, as_json: bool, as_markdown: bool) -> None:
    """Run the tasks on one model after the other, pair the documents, print."""
    reference, candidates = split(options)
    if options.generate is not None and options.generate.names_strategy:
        make_strategy(options.generate, standard_registry(options.plugins).strategies)
    with progress() as update:
        update("find tasks", 0, 2)
        found = Tasks(list(options.tasks), options.include)
        update("find tasks", 1, 2)
        greedy, kinds = found.wants_greedy(), found.kinds()
        update("find tasks", 2, 2)
    if options.generate is not None and GENERATION not in kinds:
        raise QdcError(
            "--generate changes nothing: none of the tasks has the model write",
            where=found.names,
            help="leave it out",
        )
    scored = kinds != {GENERATION}
    if not scored:
        _refuse_unread(options, found.names)
    asked = Asked(options, found, greedy, scored)
    runs: list[tuple[TaskRun, Values]] = []
    known: tuple[ModelFacts, list[int]] | None = None
    chosen = [(path, options.backend) for path in candidates]
    if reference is not None:
        chosen.append((reference, REFERENCE))
    for path, runner in chosen:
        opened = open_runnable(
            path, options.device, options.plugins, runner, options.document_tokens,
            verify=options.verify, exact=True,
        )  # fmt: skip
        marks = (opened.facts, opened.encode.document(PROBE))
        if known is not None and marks != known:
            raise QdcError(
                "the models do not share vocabulary, mask token and tokenizer, or the special "
                "tokens around a text",
                where=[str(path)],
                help="compare an artifact with the checkpoint that it was compiled from; if it "
                "was compiled with --document-tokens, give that here too",
            )
        known = marks
        if scored:
            require_masks(opened.facts, found.names)
        runs.append(_run(opened, str(path), asked))
        del opened
    if reference is None:
        [(run, _)] = runs
        if as_json:
            print_json(run.model_dump(mode="json"))
        else:
            print_run(console(), run, markdown=as_markdown)
        return
    original, values = runs.pop()
    compared = [
        TaskComparison(candidate=run, original=original, differences=differences(mine, values))
        for run, mine in runs
    ]
    if as_json:
        data = [each.model_dump(mode="json") for each in compared]
        print_json(data[0] if len(data) == 1 else {"against": str(reference), "models": data})
    else:
        print_differences(console(), compared, markdown=as_markdown)


def _refuse_unread(asked: EvaluationOptions, names: Sequence[str]) -> None:
    """Refuse options of likelihoods where no task asks for one."""
    fields = EvaluationOptions.model_fields
    wrong = [name for name in OF_LIKELIHOODS if getattr(asked, name) != fields[name].default]
    if wrong:
        options = ", ".join("--" + name.replace("_", "-") for name in wrong)
        raise QdcError(
            f"{options} changes nothing: none of the tasks asks for a likelihood",
            where=names,
            help="leave it out",
        )


def _run(opened: Opened, name: str, asked: Asked) -> tuple[TaskRun, Values]:
    from qdc.evaluation.harness.adapter import DiffusionLM

    wanted = asked.options
    options = wanted.likelihoods(default_scorer(opened.facts))
    subject = Subject(
        opened, opened.module, opened.facts, opened.tokenizer, opened.decoding, opened.decode,
        wanted.chat, opened.strategies, opened.encode.surround,
    )  # fmt: skip
    with progress() as update:
        model = DiffusionLM(
            subject, options, wanted.generate, checks_greedy=asked.wants_greedy,
            progress=lambda what, done, total: update(what, done, total),
        )  # fmt: skip
        results = asked.tasks.run(model, wanted.limit, wanted.shots, chat=wanted.chat)
    values = document_values(results["samples"], results.get("group_subtasks", {}))
    found = TaskRun(
        model=name,
        scorer=options.scorer if asked.scored else None,
        mc_num=options.mc_num,
        cfg=options.cfg,
        seed=options.seed,
        decoding=wanted.generate.model_dump(exclude_unset=True) if wanted.generate else {},
        metrics=metrics(values, results["results"]),
        truncated=model.truncated,
    )
    return found, values


def print_run(to: Console, run: TaskRun, *, markdown: bool = False) -> None:
    """Print what one model reached."""
    rows = [
        (
            each.task,
            _metric(each.metric, each.filter),
            f"{each.documents:,}",
            f"{each.value:.4f}",
            "" if each.standard_error is None else f"{each.standard_error:.4f}",
        )
        for each in run.metrics
    ]
    columns = ("task", "metric", "documents", "value", "s.e.")
    print_sheet(to, Sheet(run.model, columns, (2, 3, 4), rows, _notes(run)), markdown=markdown)


def print_differences(
    to: Console, compared: Sequence[TaskComparison], *, markdown: bool = False
) -> None:
    """Print models against another one, on the same documents, in one table."""
    many = len(compared) > 1
    first = compared[0]
    rows = [
        (*((each.candidate.model,) if many else ()), *_row(difference))
        for each in compared
        for difference in each.differences
    ]
    names = (
        "task", "metric", "documents", "compiled", "original", "difference", "s.e.",
        "95% interval", "won : lost", "p",
    )  # fmt: skip
    columns = (*(("model",) if many else ()), *names)
    right = tuple(range(2 + many, len(columns)))
    title = f"{'compiled' if many else first.candidate.model} against {first.original.model}"
    notes = (
        *_notes(first.original),
        "differences are paired by document, and intervals resample documents",
        "won : lost: documents that only the compiled, only the original has right; p: McNemar",
    )
    print_sheet(to, Sheet(title, columns, right, rows, notes), markdown=markdown)
    unpaired = [m for each in (*(c.candidate for c in compared), first.original)
                for m in each.metrics if m.standard_error is None]  # fmt: skip
    if unpaired:
        print_lines(to, "", "aggregates that are no mean over documents:")
        for each in (*(c.candidate for c in compared), first.original):
            for metric in (m for m in each.metrics if m.standard_error is None):
                text = f"{metric.task} {_metric(metric.metric, metric.filter)} {metric.value:.4f}"
                print_lines(to, f"  {each.model}  {text}")


def _row(found: MetricDifference) -> tuple[str, ...]:
    error, p_value = found.standard_error, found.p_value
    return (
        found.task,
        _metric(found.metric, found.filter),
        f"{found.documents:,}",
        f"{found.candidate:.4f}",
        f"{found.original:.4f}",
        f"{found.difference:+.4f}",
        "" if error is None else f"{error:.4f}",
        spread(found.interval, "+.3f"),
        "" if p_value is None else f"{found.only_candidate} : {found.only_original}",
        "" if p_value is None else f"{p_value:.3f}",
    )


def _metric(name: str, kept: str) -> str:
    return name if kept == "none" else f"{name} ({kept})"


def _notes(run: TaskRun) -> tuple[str, ...]:
    guidance = f", guidance {run.cfg:g}" if run.cfg else ""
    given = ", ".join(f"{name}={value}" for name, value in run.decoding.items())
    notes = []
    if run.scorer is not None:
        masks = f"{run.mc_num} masks each, seed {run.seed}"
        notes.append(f"likelihoods: {run.scorer}, {masks}{guidance}")
    if given:
        notes.append(f"decoding: {given}")
    if run.truncated:
        notes.append(f"{run.truncated} prompts were cut to the model's length")
    return tuple(notes)
