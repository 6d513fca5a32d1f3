"""Iterators in step: as zip, but strict, and nothing of theirs is held."""

import weakref
from collections.abc import Iterator

import pytest

from qdc.passkit.lockstep import lockstep


class Batch:
    """Something that a weak reference can stand for."""


def test_it_is_zip_until_all_end() -> None:
    assert list(lockstep(iter("ab"), iter((1, 2)))) == [("a", 1), ("b", 2)]
    assert list(lockstep(iter(()), iter(()))) == []


@pytest.mark.parametrize("others", ["abc", "a", ""])
def test_one_that_ends_before_another_is_refused(others: str) -> None:
    with pytest.raises(ValueError, match="1 ended before the others"):
        list(lockstep(iter("ab"), iter(others)))


def test_nothing_is_held_while_the_next_is_made() -> None:
    alive: list[weakref.ref[Batch]] = []

    def made() -> Iterator[Batch]:
        for _ in range(3):
            assert all(reference() is None for reference in alive)
            one = Batch()
            alive.append(weakref.ref(one))
            yield one
            del one

    for one, number in lockstep(made(), iter(range(3))):
        assert alive[number]() is one
        del one
    assert len(alive) == 3
