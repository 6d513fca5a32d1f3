import pytest
import torch
from torch import Tensor

from qdc.numerics import products
from qdc.planning.rates import measure


def test_products_are_timed_as_compiles_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []

    def taken(inputs: Tensor, weight: Tensor, *others: object) -> Tensor:
        seen.append(inputs.dtype)
        return torch.nn.functional.linear(inputs, weight)

    monkeypatch.setattr(products, "_wide", lambda: taken)
    rates = measure(torch.device("cpu"))
    assert set(seen) == {torch.float32}
    assert min(rates) > 0
