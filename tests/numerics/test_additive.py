"""Sums of codebook entries: the search against brute force, the updates against least squares."""

import itertools

import pytest
import torch
from torch import Tensor

from qdc.numerics.additive import Additive, Problem, sums_by_code
from qdc.numerics.additive_fit import fit_additive
from qdc.numerics.additive_search import beam_sweep, better_rows, feedback_codes
from qdc.numerics.additive_start import distance_metric, nearest_entries, start_additive
from qdc.numerics.additive_update import Update, adam, rescaled, solve, updated
from qdc.numerics.factor import factorize
from tests.support.units import correlated_moment, noise


def problem(rows: int, columns: int, group: int, seed: int = 0) -> Problem:
    return Problem.padded(noise(rows, columns, seed), correlated_moment(columns, seed), group)


def random_state(
    given: Problem, books: int, count: int, group: int, seed: int = 0, scale: float = 0.3
) -> Additive:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = given.target.shape
    codes = torch.randint(count, (rows, books, columns // group), generator=generator)
    codebook = scale * torch.randn(books, count, group, generator=generator)
    return Additive(codes, codebook, 0.5 + torch.rand(rows, generator=generator)).stored()


def order() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize(("books", "beam"), [(1, 1), (2, 6), (3, 36)])
def test_a_beam_that_holds_all_states_finds_the_best_codes(books: int, beam: int) -> None:
    count, group = 6, 3
    given = problem(4, group, group)
    state = random_state(given, books, count, group)
    found = beam_sweep(given, state, beam, order())
    every = [
        given.row_costs(state._replace(codes=torch.tensor(codes).expand(4, -1)[..., None]).dense())
        for codes in itertools.product(range(count), repeat=books)
    ]
    best = torch.stack(every).min(0).values
    torch.testing.assert_close(given.row_costs(found.dense()), best, rtol=1e-5, atol=1e-9)


def test_every_step_of_a_sweep_takes_the_best_of_all_entries() -> None:
    given = problem(5, 12, 4)
    state = random_state(given, 2, 7, 4)
    swept = beam_sweep(given, state, 1, order())
    codes, generator = state.codes.clone(), order()
    for group in torch.randperm(3, generator=generator).tolist():
        for book in torch.randperm(2, generator=generator).tolist():
            costs = []
            for entry in range(7):
                codes[:, book, group] = entry
                costs.append(given.row_costs(state._replace(codes=codes).dense()))
            codes[:, book, group] = torch.stack(costs).argmin(0)
    assert torch.equal(swept.codes, codes)


@pytest.mark.parametrize("beam", [1, 3])
def test_no_row_costs_more_after_a_sweep(beam: int) -> None:
    given = problem(9, 24, 4, 1)
    state, generator = random_state(given, 2, 16, 4), order()
    costs = given.row_costs(state.dense())
    for _ in range(4):
        state = beam_sweep(given, state, beam, generator)
        now = given.row_costs(state.dense())
        assert bool((now <= costs).all())
        costs = now


def test_a_wider_beam_costs_less_in_the_mean() -> None:
    found = dict.fromkeys((1, 8), 0.0)
    for seed in range(4):
        given = problem(16, 24, 4, seed)
        for beam in found:
            state = random_state(given, 2, 16, 4, seed)
            found[beam] += given.cost(beam_sweep(given, state, beam, order()))
    assert found[8] < found[1]


def test_rows_are_searched_alike_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem(9, 24, 4)
    state = random_state(given, 2, 16, 4)
    whole = beam_sweep(given, state, 2, order())
    monkeypatch.setattr("qdc.numerics.additive_search.COSTS", 2 * 16 * 2)
    assert torch.equal(beam_sweep(given, state, 2, order()).codes, whole.codes)


def test_rows_of_scale_0_keep_their_codes() -> None:
    given = problem(4, 8, 4)
    state = random_state(given, 2, 5, 4)
    state.scale[1] = 0
    swept = beam_sweep(given, state, 1, order())
    assert torch.equal(swept.codes[1], state.codes[1])
    assert not torch.equal(swept.codes[0], state.codes[0])


def test_feedback_costs_less_than_the_nearest_entries() -> None:
    weight, moment = noise(12, 22), correlated_moment(22)
    given, upper = Problem.padded(weight, moment, 4), factorize(moment, 0.0).upper
    state = start_additive(given, 2, 8, 4)
    codes = feedback_codes(weight, upper, state)
    assert codes.shape == state.codes.shape
    assert given.cost(state._replace(codes=codes)) < 0.8 * given.cost(state)
    best = better_rows(given, state, codes)
    assert given.cost(best) <= given.cost(state._replace(codes=codes))


def test_feedback_on_one_vector_is_brute_force() -> None:
    weight, moment = noise(6, 4), correlated_moment(4)
    given, upper = Problem.padded(weight, moment, 4), factorize(moment, 0.0).upper
    state = random_state(given, 1, 9, 4)
    codes = feedback_codes(weight, upper, state)
    assert torch.equal(codes, beam_sweep(given, state, 1, order()).codes)


def least_squares(given: Problem, state: Additive) -> float:
    """The least cost over all codebooks, by one dense normal equation in fp64."""
    books, count, group = state.codebook.shape
    size = books * count * group
    columns = []
    for at in range(size):
        unit = torch.zeros(size)
        unit[at] = 1
        columns.append(state._replace(codebook=unit.view(books, count, group)).dense().double())
    design, moment = torch.stack(columns), given.moment.double()
    normal = torch.einsum("arm,mk,brk->ab", design, moment, design)
    wanted = torch.einsum("arm,mk,rk->a", design, moment, given.target.double())
    found = torch.linalg.pinv(normal, hermitian=True, rtol=1e-10) @ wanted
    dense = torch.einsum("a,arm->rm", found, design)
    return float(given.row_costs(dense).sum())


@pytest.mark.parametrize("books", [1, 2])
def test_the_solve_is_least_squares(books: int) -> None:
    given = problem(10, 12, 3)
    state = random_state(given, books, 4, 3)
    solved = solve(given, state, 200)
    assert given.cost(solved) == pytest.approx(least_squares(given, state), rel=1e-3)
    assert given.cost(rescaled(given, solved)) < given.cost(solved)
    costs = [given.cost(solve(given, state, steps)) for steps in range(6)]
    assert costs == sorted(costs, reverse=True)


def test_adam_goes_where_the_solve_is_at_once() -> None:
    given = problem(10, 12, 3)
    state = random_state(given, 1, 4, 3)
    costs = [given.cost(adam(given, state, steps, 1e-2)) for steps in (0, 20, 400)]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == given.cost(state)
    both = solve(given, state, 50)
    for _ in range(50):
        both = solve(given, rescaled(given, both), 50)
    assert costs[2] == pytest.approx(given.cost(both), rel=0.05)


def test_k_means_at_rest_has_means_and_nearest_entries() -> None:
    given = problem(64, 8, 2)
    start = start_additive(given, 1, 5, 2, iterations=1000)
    vectors = (given.target / start.scale[:, None]).reshape(64, 4, 2)
    away = (vectors[:, :, None] - start.codebook[0]).square().sum(-1)
    assert torch.equal(away.argmin(-1), start.codes[:, 0])
    for entry in range(5):
        mean = vectors[start.codes[:, 0] == entry].mean(0)
        torch.testing.assert_close(start.codebook[0, entry], mean, rtol=1e-3, atol=1e-4)


def test_distances_of_outputs_start_with_less_output_error() -> None:
    found = dict.fromkeys(("weights", "outputs", "conditional"), 0.0)
    for seed in range(3):
        given, moment = problem(64, 24, 4, seed), correlated_moment(24, seed)
        upper = factorize(moment, 0.0).upper
        blocks = distance_metric("outputs", given.moment, upper, 4)
        assert blocks is not None
        for start in found:
            metric = distance_metric(start, given.moment, upper, 4)  # type: ignore[arg-type]
            state = start_additive(given, 1, 16, 4, metric=metric)
            error = (given.target - state.dense()).view(64, 6, 4)
            found[start] += float(torch.einsum("rja,jab,rjb->", error, blocks, error))
    assert found["outputs"] == min(found.values())
    full = torch.linalg.inv(torch.linalg.inv(given.moment.double())[4:8, 4:8])
    conditional = distance_metric("conditional", given.moment, upper, 4)
    assert conditional is not None
    ratio = conditional[1].double() / full
    torch.testing.assert_close(ratio, ratio[0, 0].expand(4, 4), rtol=1e-3, atol=0)


def test_fewer_points_still_give_all_vectors_codes() -> None:
    given = problem(64, 8, 2)
    start = start_additive(given, 1, 4, 2, points=4)
    vectors = (given.target / start.scale[:, None]).reshape(64, 4, 2).transpose(0, 1)
    nearest = nearest_entries(vectors, torch.eye(2).expand(4, 2, 2), start.codebook[0])
    assert torch.equal(nearest.T, start.codes[:, 0])
    assert not torch.equal(start.codebook, start_additive(given, 1, 4, 2).codebook)


@pytest.mark.parametrize("update", ["adam", "solve"])
def test_no_epoch_costs_more_and_everything_is_rounded(update: Update) -> None:
    given = problem(12, 24, 4)
    start = start_additive(given, 2, 8, 4)
    state, costs = fit_additive(given, start, update=update, steps=30, tolerance=0, epochs=12)
    assert costs == sorted(costs, reverse=True)
    assert len(set(costs)) > 3
    assert costs[-1] == given.cost(state) < 0.7 * costs[0]
    assert torch.equal(state.codebook, state.codebook.half().float())
    assert torch.equal(state.scale, state.scale.half().float())
    few, short = fit_additive(given, start, update=update, steps=30, tolerance=0.5)
    assert len(short) < len(costs)
    assert given.cost(few) == short[-1]


def test_entries_that_overflow_leave_what_was_found_before() -> None:
    given = problem(4, 8, 4)
    state = random_state(given, 1, 4, 4)
    with pytest.raises(OverflowError, match="fp16"):
        updated(given, state, "adam", 1, 1e6)
    kept, costs = fit_additive(given, state, rate=1e6, steps=1)
    assert torch.equal(kept.codes, state.codes)
    assert len(costs) == 1
    with pytest.raises(OverflowError, match="norm"):
        start_additive(Problem(1e6 * given.target, given.moment), 1, 4, 4)


def test_vectors_are_added_up_by_their_codes() -> None:
    values, codes = noise(7, 3), torch.tensor([0, 2, 2, 0, 4, 0, 2])
    one_hot: Tensor = torch.nn.functional.one_hot(codes, 5).float()
    torch.testing.assert_close(sums_by_code(values, codes, 5), one_hot.T @ values)
    sorted_first = torch.ops.aten.embedding_dense_backward(values, codes, 5, -1, False)
    torch.testing.assert_close(sorted_first, one_hot.T @ values)
