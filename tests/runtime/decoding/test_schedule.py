"""How steps are shared, against the published loops written out; and the noise."""

import math
from collections.abc import Iterator

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qdc.numerics.noise import splitmix
from qdc.runtime.decoding.schedule import (
    dream_chances,
    dream_quotas,
    even_quotas,
    shared_steps,
)
from tests.support.decoding import places


def llada_quotas(count: int, steps: int) -> list[int]:
    found = [count // steps] * steps
    for step in range(count % steps):
        found[step] += 1
    return found


def dream_steps(count: int, steps: int) -> list[int]:
    times = torch.linspace(1, 1e-3, steps + 1, dtype=torch.float64).tolist()
    found, left = [], count
    for step in range(steps):
        t, s = times[step], times[step + 1]
        found.append(int(left * (1 - s / t)) if step < steps - 1 else left)
        left -= found[-1]
    return found


@settings(max_examples=40)
@given(counts=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), min_size=1, max_size=4))
def test_quotas(counts: list[tuple[int, int]]) -> None:
    rows, steps = (torch.tensor(part) for part in zip(*counts, strict=True))
    for plan, written in (
        (even_quotas(rows, steps), llada_quotas),
        (dream_quotas(rows, steps), dream_steps),
    ):
        assert plan.sum(0).tolist() == rows.tolist()
        for row, (count, of) in enumerate(counts):
            assert plan[:of, row].tolist() == written(count, of)
            assert not bool(plan[of:, row].any())


def test_dream_by_hand() -> None:
    """Of 4 places in 2 steps: int(4 * (1 - 0.5005)) = 1, then the rest."""
    assert dream_quotas(torch.tensor([4]), torch.tensor([2])).tolist() == [[1], [3]]
    chances = dream_chances(torch.tensor([2]))[:, 0].tolist()
    assert math.isclose(chances[0], 1 - (1 + 1e-3) / 2)
    assert chances[1] == 1


def test_blocks_share_the_steps() -> None:
    assert shared_steps([8, 8, 8, 8], 8) == [2, 2, 2, 2]
    assert shared_steps([8, 8], None) == [8, 8]
    assert shared_steps([2, 6], 4) == [1, 3]
    assert shared_steps([3, 0, 1], 2) == [1, 0, 1]
    assert shared_steps([2, 2], 99) == [2, 2]


def test_noise_is_that_of_a_place() -> None:
    """It does not depend on which other places are drawn, nor on how much."""
    many = places(4).draws("token", 8)
    assert many.dtype == torch.float64
    assert bool(((many > 0) & (many < 1)).all())
    one = places(1).draws("token", 3)
    assert torch.equal(many[:1, :3], one)
    assert len({*many.flatten().tolist(), *places(4).draws("order", 8).flatten().tolist()}) == 64
    assert not torch.equal(many, places(4, seed=4).draws("token", 8))
    assert not torch.equal(many, places(4, step=6).draws("token", 8))


def test_noise_stays_the_same() -> None:
    """These numbers are part of what a seed promises."""
    assert places(1, seed=7).draws("token", 2)[0].tolist() == [
        0.5939684685328642,
        0.41828207088904656,
    ]
    mean = places(200).draws("token", 50).mean()
    assert abs(float(mean) - 0.5) < 0.01


def test_splitmix_is_the_published_one() -> None:
    """The first numbers of the key 1234567, and a loop over Python's whole numbers."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [n % 2**64 for n in splitmix(torch.tensor([1234567]), 3)[0].tolist()] == known
    keys = [0, -1, 1 << 62, -(1 << 63)]
    found = splitmix(torch.tensor(keys), 50)
    assert found.tolist() == [list(written_out(key, 50)) for key in keys]


def written_out(key: int, count: int) -> Iterator[int]:
    state = key % 2**64
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        z ^= z >> 31
        yield z - 2**64 if z >= 2**63 else z
