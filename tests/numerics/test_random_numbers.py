"""Counter-based random numbers: even, pinned, and apart for every key."""

import torch

from qdc.numerics.random_numbers import uniforms


def test_streams_never_meet() -> None:
    """Seed and index are kept apart, also where their sum, their text or their low bits agree."""
    keys = [(0, 1), (1, 0), (0, 0), (1, 10), (11, 0), (2**32, 0), (2**32 + 1, 0), (-1, 0), (0, 2)]
    draws = [tuple(uniforms(8, "calibration mask", *key).tolist()) for key in keys]
    assert len(set(draws)) == len(keys)
    assert not torch.equal(uniforms(8, 1), uniforms(8, "1"))


def test_uniforms() -> None:
    """Numbers lie in [0, 1) on a grid of 2**-24, evenly; a longer draw begins with the shorter."""
    draw = uniforms(20_000, "test")
    assert draw.dtype == torch.float32
    assert draw.min() >= 0
    assert draw.max() < 1
    assert torch.equal(draw * 2**24, (draw * 2**24).round())
    assert torch.equal(draw[:10], uniforms(10, "test"))
    counts = (draw * 20).long().bincount(minlength=20)
    assert ((counts - 1000).square() / 1000).sum() < 50
    assert uniforms(0, "test").shape == (0,)


def test_uniforms_are_pinned() -> None:
    """These very numbers; a change would alter every compiled model."""
    expected = [14252367, 3801706, 4384486]
    assert (uniforms(3, "calibration mask", 0, 0) * 2**24).long().tolist() == expected
