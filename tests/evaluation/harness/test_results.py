"""Paired results of tasks: what is paired, and how sure a difference is."""

from typing import Any

import pytest

from qdc.errors import QdcError
from qdc.evaluation.harness.results import differences, document_values, mcnemar, metrics


def samples(task: str, right: list[int], kept: str = "none") -> list[dict[str, Any]]:
    return [
        {
            "doc_id": number, "doc_hash": f"d{number}", "prompt_hash": f"p{number}",
            "filter": kept, "metrics": ["acc", "f1"], "acc": value, "f1": (value, 1),
        }
        for number, value in enumerate(right)
    ]  # fmt: skip


def test_documents_are_paired_whatever_their_order() -> None:
    mine = document_values({"t": samples("t", [1, 1, 0, 1, 0])})
    theirs = document_values({"t": samples("t", [1, 0, 1, 0, 0])[::-1]})
    [found] = differences(mine, theirs)
    assert (found.task, found.metric, found.documents) == ("t", "acc", 5)
    assert (found.candidate, found.original) == (0.6, 0.4)
    assert found.difference == pytest.approx(0.2)
    # Of the changes 0, 1, -1, 1, 0.
    assert found.standard_error == pytest.approx((0.7 / 5) ** 0.5)
    assert found.interval == pytest.approx((-0.6, 0.8), abs=0.21)
    assert (found.only_candidate, found.only_original) == (2, 1)
    assert found.p_value == 1.0


@pytest.mark.parametrize(
    ("gained", "lost", "expected"),
    [(0, 0, 1.0), (5, 0, 2 / 32), (1, 7, 2 * 9 / 256), (3, 3, 1.0), (10, 2, 2 * 79 / 4096)],
)
def test_mcnemar(gained: int, lost: int, expected: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(expected)
    assert mcnemar(lost, gained) == pytest.approx(expected)


def test_scores_that_are_not_right_or_wrong_have_no_mcnemar() -> None:
    mine = document_values({"t": samples("t", [1, 2, 3])})
    theirs = document_values({"t": samples("t", [1, 1, 1])})
    [found] = differences(mine, theirs)
    assert found.difference == pytest.approx(1.0)
    assert (found.only_candidate, found.p_value) == (None, None)


def test_other_documents_are_refused() -> None:
    mine = document_values({"t": samples("t", [1, 0])})
    with pytest.raises(QdcError, match="did not see the same documents"):
        differences(mine, document_values({"t": samples("t", [1, 0, 0])}))
    with pytest.raises(QdcError, match="not asked the same tasks"):
        differences(mine, document_values({"u": samples("u", [1, 0])}))


def test_groups_pool_the_documents_of_their_tasks() -> None:
    logged = {"a": samples("a", [1, 0]), "b": samples("b", [1, 1, 1, 0])}
    mine = document_values(logged, {"both": ["a", "b"]})
    found = {each.task: each for each in differences(mine, mine)}
    assert found["both"].documents == 6
    assert found["both"].candidate == pytest.approx(4 / 6)


def test_metrics_are_the_aggregates_of_the_harness() -> None:
    """With an error where a metric is the mean over documents, and without it where it is not."""
    values = document_values({"t": samples("t", [1, 0, 1, 1])})
    results = {
        "t": {"alias": "t", "acc,none": 0.75, "acc_stderr,none": "N/A", "f1,none": 0.5,
              "sample_len": 4},
    }  # fmt: skip
    accuracy, f1 = metrics(values, results)
    assert (accuracy.value, accuracy.documents) == (0.75, 4)
    assert accuracy.standard_error == pytest.approx((0.25 / 4) ** 0.5)
    assert (f1.metric, f1.value, f1.documents, f1.standard_error) == ("f1", 0.5, 4, None)
