"""The queue: what runs together, who is refused, and that nobody is forgotten."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
import torch

from qdc.errors import NotFinite, QdcError
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.results import Decoded, Snapshot, Watch
from qdc.serve.engine import Engine, Gaps
from qdc.serve.finaltext import FinalText
from qdc.serve.limits import Limits
from qdc.serve.refusals import Refused
from qdc.serve.ticket import AnswerTicket

LENGTH = 3
MASK, END = 9, 0


class Panic(BaseException):
    """As tokenizers raises: no ``Exception``."""


class Model:
    """Answers with the seed of each row; stops before each step until it may go on."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may = threading.Semaphore(0)
        self.fails: BaseException | None = None

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        gaps: Gaps,
        options: DecodeOptions,
        seeds: Sequence[int],
        watch: Watch,
    ) -> Decoded:
        self.batches.append(list(seeds))
        tokens = torch.full((len(seeds), len(prompts[0]) + options.length), MASK)
        for step in range(options.length):
            assert self.may.acquire(timeout=20)
            if self.fails is not None:
                raise self.fails
            tokens[:, len(prompts[0]) + step] = torch.tensor(list(seeds))
            watch(Snapshot(tokens.clone(), tokens == MASK, step + 1, options.length, step + 1))
        answers = [[seed] * options.length for seed in seeds]
        return Decoded(tokens, answers, tokens.numel(), options.length, options.length, 0.1)


def ticket(
    seed: int, prompt: int = 2, stops: Sequence[str] = (), client: str = "", **fields: Any
) -> AnswerTicket:
    options = DecodeOptions(**{"length": LENGTH, "seed": seed, **fields})
    final = FinalText(lambda tokens: "".join(map(str, tokens)), stops)
    return AnswerTicket([5] * prompt, options, final, [END], client)


def within(
    test: Callable[[Engine, Model], Coroutine[Any, Any, None]], **limits: int
) -> Callable[[], None]:
    """Run a test in an event loop, with a queue."""

    def run() -> None:
        model = Model()
        engine = Engine(
            model, Limits.model_validate({"max_length": 64, "batch": 3, **limits}), "verify it"
        )
        try:
            asyncio.run(asyncio.wait_for(test(engine, model), 30))
        finally:
            model.may.release(1000)
            engine.abort()
            engine.join(10)

    return run


async def begun(model: Model, number: int) -> None:
    while len(model.batches) < number:
        await asyncio.sleep(0.005)


def test_equal_shapes_run_together_in_their_order() -> None:
    async def test(engine: Engine, model: Model) -> None:
        tickets = [ticket(1)]
        engine.submit(tickets[0])
        await begun(model, 1)
        more = (ticket(2), ticket(3, prompt=4), ticket(4), ticket(5, temperature=1.0),
                ticket(6), ticket(7), ticket(8, prompt=4))  # fmt: skip
        for each in more:
            engine.submit(each)
        assert engine.load == (1, 7)
        model.may.release(100)
        for each in (*tickets, *more):
            assert (await each.end()).finish == "length"
            assert each.final.text == str(each.options.seed) * LENGTH
        assert model.batches == [[1], [2, 4, 6], [3, 8], [5], [7]]
        assert engine.load == (0, 0)

    within(test)()


def test_a_seed_that_is_given_and_one_that_is_not_run_together() -> None:
    async def test(engine: Engine, model: Model) -> None:
        first = ticket(5)
        engine.submit(first)
        await begun(model, 1)
        bare = AnswerTicket([5, 5], DecodeOptions(length=LENGTH), FinalText(str))
        for each in (bare, ticket(3)):
            engine.submit(each)
        model.may.release(100)
        await bare.end()
        assert model.batches == [[5], [0, 3]]

    within(test)()


def test_a_full_queue() -> None:
    async def test(engine: Engine, model: Model) -> None:
        tickets = [ticket(seed) for seed in range(1, 4)]
        engine.submit(tickets[0])
        await begun(model, 1)
        engine.submit(tickets[1])
        engine.submit(tickets[2])
        with pytest.raises(Refused) as caught:
            engine.submit(ticket(4))
        assert caught.value.status == 429
        assert int(caught.value.headers["Retry-After"]) >= 1
        tickets[1].cancel()  # makes room
        engine.submit(ticket(5))
        model.may.release(100)
        await tickets[2].end()
        assert model.batches == [[1], [3, 5]]

    within(test, queue=2)()


def test_a_flood_delays_others_by_one_batch() -> None:
    """Sixty-four requests of one client wait, none of which fits together with another."""

    async def test(engine: Engine, model: Model) -> None:
        flood = [ticket(seed, prompt=1 + seed % 32, client="a") for seed in range(64)]
        for each in flood:
            engine.submit(each)
        await begun(model, 1)
        late = [ticket(100 + n, prompt=40, client=name) for n, name in enumerate("bcb")]
        for each in late:
            engine.submit(each)
        model.may.release(1000)
        await asyncio.gather(*(each.end() for each in (*flood, *late)))
        place = {seed: n for n, batch in enumerate(model.batches) for seed in batch}
        assert place[100] == 1
        assert place[101] == 1, "of equal shape"
        assert place[102] == 1
        assert [seed for batch in model.batches for seed in batch if seed < 32] == [*range(32)]

    within(test, queue=100)()


def test_clients_take_turns_and_share_batches() -> None:
    async def test(engine: Engine, model: Model) -> None:
        first = ticket(1, client="a")
        engine.submit(first)
        await begun(model, 1)
        odd = [ticket(20 + n, prompt=9 + n, client="b") for n in range(2)]
        more = [ticket(seed, client="a") for seed in range(2, 9)]
        same = [ticket(30 + n, client="c") for n in range(2)]
        for each in (*more, *odd, *same):
            engine.submit(each)
        model.may.release(1000)
        await asyncio.gather(*(each.end() for each in (first, *more, *odd, *same)))
        # b and c have their turn before a, of whose line one shares the batch of c.
        assert model.batches == [[1], [20], [30, 2, 31], [3, 4, 5], [21], [6, 7, 8]]

    within(test)()


def test_a_client_has_a_queue_of_its_own() -> None:
    async def test(engine: Engine, model: Model) -> None:
        engine.submit(ticket(1, client="a"))
        await begun(model, 1)
        for seed in (2, 3):
            engine.submit(ticket(seed, client="a"))
        with pytest.raises(Refused, match="2 of your own requests are waiting") as caught:
            engine.submit(ticket(4, client="a"))
        assert (caught.value.status, caught.value.code) == (429, "client_queue_full")
        assert int(caught.value.headers["Retry-After"]) >= 1
        other = ticket(5, client="b")
        engine.submit(other)
        with pytest.raises(Refused, match="too many requests"):
            engine.submit(ticket(6, client="c"))
        model.may.release(1000)
        await other.end()

    within(test, queue=3, client_queue=2)()


def test_a_batch_that_nobody_waits_for_is_left() -> None:
    async def test(engine: Engine, model: Model) -> None:
        gone, next_one = ticket(1), ticket(2, prompt=3)
        engine.submit(gone)
        await begun(model, 1)
        engine.submit(next_one)
        gone.cancel()
        model.may.release(1)
        await begun(model, 2)  # two steps of the first were never taken
        model.may.release(LENGTH)
        await next_one.end()

    within(test)()


def test_an_answer_ends_when_its_end_is_decided() -> None:
    async def test(engine: Engine, model: Model) -> None:
        ends, stops, whole = ticket(END), ticket(3, stops=["33"]), ticket(4)
        first = ticket(7)
        engine.submit(first)
        await begun(model, 1)
        for each in (ends, stops, whole):
            engine.submit(each)
        model.may.release(LENGTH + 1)
        assert (await ends.end()).completion_tokens == 0
        assert (ends.final.text, stops.outcome) == ("", None)
        model.may.release(1)
        assert (await stops.end()).finish == "stop"
        assert (stops.final.text, whole.outcome) == ("", None)
        model.may.release(1)
        assert (await whole.end()).finish == "length"

    within(test)()


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (QdcError("too odd", help="be even"), 400, "too odd; be even"),
        (NotFinite("too hot"), 500, "too hot; the fault is the model's: verify it"),
        (ValueError("secret"), 500, "the server failed"),
        (Panic("secret"), 500, "the server failed"),
    ],
)
def test_errors_reach_everybody_in_the_batch(
    error: BaseException, status: int, message: str
) -> None:
    async def test(engine: Engine, model: Model) -> None:
        model.fails = error
        failed = ticket(1)
        engine.submit(failed)
        model.may.release(1)
        with pytest.raises(Refused, match=message) as caught:
            await failed.end()
        assert caught.value.status == status
        assert "secret" not in caught.value.message
        model.fails = None
        fine = ticket(2)
        engine.submit(fine)
        model.may.release(LENGTH)
        await fine.end()

    within(test)()


def test_stopping() -> None:
    async def test(engine: Engine, model: Model) -> None:
        runs, waits = ticket(1), ticket(2)
        engine.submit(runs)
        await begun(model, 1)
        engine.submit(waits)
        engine.close()
        for refused in (waits.end, lambda: asyncio.to_thread(engine.submit, runs)):
            with pytest.raises(Refused) as caught:
                await refused()
            assert caught.value.status == 503
        model.may.release(LENGTH)
        assert (await runs.end()).finish == "length"
        assert not engine.alive

    within(test)()


def test_a_stop_that_does_not_wait() -> None:
    async def test(engine: Engine, model: Model) -> None:
        runs = ticket(1)
        engine.submit(runs)
        await begun(model, 1)
        engine.abort()
        model.may.release(1)
        with pytest.raises(Refused, match="stopping"):
            await runs.end()

    within(test)()
