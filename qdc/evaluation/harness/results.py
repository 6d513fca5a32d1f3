"""Results of tasks as data, and two models on the same documents."""

from collections.abc import Mapping, Sequence
from math import comb
from typing import Any

import torch

from qdc.errors import QdcError
from qdc.evaluation.bootstrap import Interval, interval, standard_error
from qdc.ir.types import Frozen


class TaskMetric(Frozen):
    """One metric of one task, over its ``documents``."""

    task: str
    metric: str
    filter: str
    documents: int
    value: float
    standard_error: float | None
    """None where the metric is no mean over documents."""


class MetricDifference(Frozen):
    """One metric of two models on the same documents; positive if the candidate's is larger."""

    task: str
    metric: str
    filter: str
    documents: int
    candidate: float
    original: float
    difference: float
    standard_error: float | None
    """Of the paired difference."""
    interval: Interval | None
    """95%, documents resampled."""
    only_candidate: int | None
    """Documents that the candidate alone has right; None where a metric is not right or wrong."""
    only_original: int | None
    p_value: float | None
    """McNemar's exact two-sided test."""


class TaskRun(Frozen):
    """What one model answered."""

    model: str
    scorer: str | None
    """None where no task asks for likelihoods."""
    mc_num: int
    cfg: float
    seed: int
    decoding: dict[str, str | int | float | bool]
    """Decoding options that the user gave."""
    metrics: tuple[TaskMetric, ...]
    truncated: int = 0
    """Requests whose prompt was cut to the model's length."""


class TaskComparison(Frozen):
    """One model against another one."""

    candidate: TaskRun
    original: TaskRun
    differences: tuple[MetricDifference, ...]


Key = tuple[str, str, str]
Values = dict[Key, dict[tuple[Any, ...], float]]
"""Task, metric and filter; then the value of each document, by number and hash."""


def document_values(
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    groups: Mapping[str, Sequence[str]] | None = None,
) -> Values:
    """Sort what the harness logged. Metrics that are no number of a document are left out.

    The documents of a group are those of all its tasks, each with the same weight.
    """
    found: Values = {}
    for task, entries in samples.items():
        for entry in entries:
            for metric in entry["metrics"]:
                value = entry[metric]
                if isinstance(value, int | float):
                    document = (entry["doc_id"], entry["doc_hash"], entry["prompt_hash"])
                    key = (task, metric, str(entry["filter"]))
                    found.setdefault(key, {})[document] = float(value)
    pooled: Values = {}
    for group, tasks in (groups or {}).items():
        for (task, metric, kept), values in found.items():
            if task in tasks and task != group:
                into = pooled.setdefault((group, metric, kept), {})
                into |= {(task, *document): value for document, value in values.items()}
    return found | pooled


def metrics(values: Values, results: Mapping[str, Mapping[str, Any]]) -> tuple[TaskMetric, ...]:
    """Every metric of every task, as the harness aggregated it."""
    found = []
    for task, entries in results.items():
        for name, value in entries.items():
            metric, _, kept = name.partition(",")
            if not kept or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            documents = values.get((task, metric, kept), {})
            mean = torch.tensor(list(documents.values()), dtype=torch.float64)
            is_mean = len(mean) > 0 and abs(float(mean.mean()) - value) < 1e-9
            count = entries.get("sample_len", len(mean))
            error = standard_error(mean, torch.ones_like(mean)) if is_mean else None
            found.append(
                TaskMetric(
                    task=task, metric=metric, filter=kept, documents=int(count),
                    value=float(value), standard_error=error,
                )
            )  # fmt: skip
    return tuple(found)


def differences(candidate: Values, original: Values) -> tuple[MetricDifference, ...]:
    """Pair two models document by document. Raises QdcError if they did not see the same ones."""
    if candidate.keys() != original.keys():
        raise QdcError("the two models were not asked the same tasks", help="evaluate both again")
    return tuple(_difference(key, candidate[key], original[key]) for key in candidate)


def _difference(
    key: Key, mine: Mapping[tuple[Any, ...], float], theirs: Mapping[tuple[Any, ...], float]
) -> MetricDifference:
    task, metric, kept = key
    if mine.keys() != theirs.keys():
        raise QdcError(
            "the two models did not see the same documents", where=[task],
            help="the task must not draw its documents or prompts at random",
        )  # fmt: skip
    ours = torch.tensor([mine[document] for document in mine], dtype=torch.float64)
    others = torch.tensor([theirs[document] for document in mine], dtype=torch.float64)
    change, one = ours - others, torch.ones_like(ours)
    binary = bool(((ours == 0) | (ours == 1)).all() and ((others == 0) | (others == 1)).all())
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    return MetricDifference(
        task=task,
        metric=metric,
        filter=kept,
        documents=len(ours),
        candidate=float(ours.mean()),
        original=float(others.mean()),
        difference=float(change.mean()),
        standard_error=standard_error(change, one),
        interval=interval(change, one),
        only_candidate=gained if binary else None,
        only_original=lost if binary else None,
        p_value=mcnemar(gained, lost) if binary else None,
    )


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value of so uneven a split, were both sides equally likely."""
    total = gained + lost
    tail = sum(comb(total, count) for count in range(min(gained, lost) + 1))
    return min(1.0, float(2 * tail / 2**total))
