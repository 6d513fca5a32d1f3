"""What a linear has made of a value is used again for the same value alone."""

import torch

from qdc.streaming.execute import Read


def test_a_value_that_was_changed_in_place_is_read_anew() -> None:
    value = torch.ones(3)
    read = Read(value, value._version, (None, None), value * 2)
    assert read.holds(value, (None, None))
    assert not read.holds(value.clone(), (None, None))
    value += 1
    assert not read.holds(value, (None, None))
