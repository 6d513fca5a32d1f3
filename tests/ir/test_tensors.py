import hashlib
from pathlib import Path

import pytest
import torch

from qdc.errors import InvalidGraph
from qdc.ir.tensors import TensorTable, digest


def test_a_reference_says_what_was_put() -> None:
    table = TensorTable()
    ref = table.put("layer.moment", torch.zeros(2, 3, dtype=torch.bfloat16))
    assert (ref.name, str(ref), ref.nbytes) == ("layer.moment", "bf16[2,3]", 12)
    assert ref.digest == hashlib.sha256(bytes(12)).hexdigest()


def test_get_gives_what_was_put() -> None:
    table = TensorTable()
    tensor = torch.arange(6).reshape(2, 3)
    ref = table.put("a", tensor)
    assert torch.equal(table.get(ref), tensor)
    assert "a" in table
    assert "b" not in table
    assert [name for name, _ in table.held()] == ["a"]


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(3, dtype=torch.bool), torch.ones(()), torch.ones(0, 3), torch.eye(3)[:, 1:]],
    ids=["bool", "scalar", "empty", "view"],
)
def test_a_digest_covers_bytes_in_row_order(tensor: torch.Tensor) -> None:
    assert digest(tensor) == digest(tensor.clone())
    assert digest(tensor) == hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def test_digests_differ_with_one_bit() -> None:
    assert digest(torch.tensor([0.0])) != digest(torch.tensor([-0.0]))
    assert digest(torch.eye(2)) != digest(torch.eye(2).flip(0))


def test_a_replaced_reference_is_refused() -> None:
    table = TensorTable()
    old = table.put("a", torch.zeros(2))
    new = table.put("a", torch.ones(2))
    assert torch.equal(table.get(new), torch.ones(2))
    with pytest.raises(InvalidGraph, match="not the one that was noted") as caught:
        table.get(old)
    assert caught.value.where == ("a",)


def test_a_reference_of_another_table_is_refused() -> None:
    ref = TensorTable().put("a", torch.zeros(2))
    with pytest.raises(InvalidGraph, match="not the one that was noted"):
        TensorTable().get(ref)


def test_a_released_name_stays_known() -> None:
    table = TensorTable()
    ref = table.put("a", torch.zeros(2))
    table.release("a")
    table.release("never put")
    assert "a" in table
    assert list(table.held()) == []
    with pytest.raises(InvalidGraph, match="tensor a was released"):
        table.get(ref)


def test_spilled_tensors_come_back(tmp_path: Path) -> None:
    table = TensorTable()
    first = table.put("a", torch.rand(4, 6).T)
    table.spill(tmp_path / "one")
    second = table.put("b", torch.ones(2, dtype=torch.bfloat16))
    table.spill(tmp_path / "two")
    assert list(table.held()) == []
    assert digest(table.get(first)) == first.digest
    assert digest(table.get(second)) == second.digest


def test_nothing_to_spill_writes_nothing(tmp_path: Path) -> None:
    TensorTable().spill(tmp_path / "one")
    assert list(tmp_path.iterdir()) == []


def test_tensors_that_share_memory_are_spilled(tmp_path: Path) -> None:
    table, whole = TensorTable(), torch.arange(12.0).reshape(3, 4)
    refs = [table.put("a", whole), table.put("b", whole), table.put("c", whole[1:])]
    table.spill(tmp_path / "one")
    assert [digest(table.get(ref)) for ref in refs] == [ref.digest for ref in refs]


def test_a_file_that_is_in_use_is_not_spilled_to(tmp_path: Path) -> None:
    table = TensorTable()
    ref = table.put("a", torch.ones(2))
    table.spill(tmp_path / "one")
    table.put("b", torch.ones(2))
    with pytest.raises(ValueError, match="holds tensors already"):
        table.spill(tmp_path / "one")
    assert digest(table.get(ref)) == ref.digest


def test_putting_again_after_a_spill_replaces(tmp_path: Path) -> None:
    table = TensorTable()
    old = table.put("a", torch.zeros(2))
    table.spill(tmp_path / "one")
    new = table.put("a", torch.ones(2))
    assert torch.equal(table.get(new), torch.ones(2))
    with pytest.raises(InvalidGraph):
        table.get(old)


def test_a_spilled_tensor_can_be_released(tmp_path: Path) -> None:
    table = TensorTable()
    ref = table.put("a", torch.zeros(2))
    table.spill(tmp_path / "one")
    table.release("a")
    with pytest.raises(InvalidGraph, match="released"):
        table.get(ref)
