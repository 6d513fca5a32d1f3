"""Lines of several clients: whatever they hold, nobody is passed over and nothing is lost."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdc.serve.fairqueue import FairQueue
from qdc.serve.limits import Limits
from qdc.serve.refusals import Refused
from qdc.serve.turns import Turns

ITEMS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2)), max_size=30)


@given(ITEMS, st.integers(1, 4))
def test_everything_is_taken_once_and_in_turns(items: list[tuple[str, int]], most: int) -> None:
    queue: FairQueue[tuple[str, int, int]] = FairQueue()
    for number, (client, kind) in enumerate(items):
        queue.push(client, (client, kind, number))
    assert len(queue) == len(items)
    taken: list[tuple[str, int, int]] = []
    waited = dict.fromkeys("abc", 0)
    while batch := queue.take(most, lambda first, other: first[1] == other[1]):
        assert len({kind for _, kind, _ in batch}) == 1
        assert len(batch) <= most
        left = {client for client, *_ in queue}
        for client in waited:
            served = any(client == each[0] for each in batch)
            waited[client] = 0 if served or client not in left else waited[client] + 1
            assert waited[client] < 3, "each of three is served within three batches"
        taken += batch
    assert sorted(number for *_, number in taken) == list(range(len(items)))
    for client in "abc":
        for kind in range(3):
            order = [n for c, k, n in taken if (c, k) == (client, kind)]
            assert order == sorted(order)


def test_turns_go_from_client_to_client() -> None:
    async def test() -> list[str]:
        turns = Turns(Limits(max_length=8, queue=6, client_queue=4))
        order: list[str] = []

        async def use(client: str) -> None:
            async with turns.turn(client):
                order.append(client)
                await asyncio.sleep(0)

        tasks = [asyncio.ensure_future(use(client)) for client in "aaaaabb"]
        await asyncio.sleep(0)
        for client, text in (("a", "too many"), ("b", "too many")):
            with pytest.raises(Refused, match=text):
                await use(client)
        tasks[5].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with pytest.raises(Refused, match="4 of your own"):
            await asyncio.gather(*map(use, "cdccccc"))
        return order

    order = asyncio.run(test())
    assert order[:6] == list("aabaaa")


def test_a_turn_that_comes_to_somebody_who_leaves_is_passed_on() -> None:
    async def test() -> None:
        turns = Turns(Limits(max_length=8))
        done = []

        async def use(client: str) -> None:
            async with turns.turn(client):
                done.append(client)

        async with turns.turn("a"):
            tasks = [asyncio.ensure_future(use(client)) for client in "bc"]
            await asyncio.sleep(0)
        tasks[0].cancel()  # it has its turn, and has not begun
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert done == ["c"]

    asyncio.run(test())
