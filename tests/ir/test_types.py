import pytest
from pydantic import ValidationError

from qdc.ir.types import LARGEST_SIZE, Dimension, Parameter, TensorRef, ValueType, short_dtype

DIGEST = "0" * 64


def test_text_of_a_type() -> None:
    assert str(ValueType(dtype="f16", shape=("B", "L", 512))) == "f16[B,L,512]"
    assert str(ValueType(dtype="i64", shape=())) == "i64[]"


def test_counts_elements_once_the_names_are_known() -> None:
    kind = ValueType(dtype="f32", shape=("B*L", 3, "L"))
    assert kind.elements({"B": 2, "L": 5}) == 2 * 5 * 3 * 5


def test_bytes_of_a_stored_tensor() -> None:
    assert TensorRef(name="a", dtype="bf16", shape=(3, 5), digest=DIGEST).nbytes == 30
    assert Parameter(name="a", dtype="u8", shape=()).nbytes == 1


@pytest.mark.parametrize(
    ("name", "short"), [("torch.bfloat16", "bf16"), ("float32", "f32"), ("torch.bool", "bool")]
)
def test_short_dtype(name: str, short: str) -> None:
    assert short_dtype(name) == short


def test_dtypes_without_a_short_name_are_refused() -> None:
    with pytest.raises(KeyError):
        short_dtype("torch.complex64")
    with pytest.raises(ValidationError, match="unknown dtype 'float32'"):
        ValueType(dtype="float32", shape=())


@pytest.mark.parametrize(
    "shape",
    [(-1,), (LARGEST_SIZE + 1,), ("b",), ("",), ("B*",), ("B\n",), ("../B",), (1,) * 9],
    ids=str,
)
def test_refuses_shapes_that_nothing_has(shape: tuple[Dimension, ...]) -> None:
    with pytest.raises(ValidationError):
        ValueType(dtype="f32", shape=shape)


@pytest.mark.parametrize("kind", [TensorRef, Parameter])
def test_stored_tensors_have_numbers_for_sizes(kind: type[TensorRef] | type[Parameter]) -> None:
    fields = {"name": "a", "dtype": "f32", "digest": DIGEST}
    if kind is Parameter:
        del fields["digest"]
    assert kind.model_validate({**fields, "shape": [2, 3]}).shape == (2, 3)
    with pytest.raises(ValidationError):
        kind.model_validate({**fields, "shape": ["B", 3]})


@pytest.mark.parametrize(
    "changed",
    [{"digest": "0" * 63}, {"digest": "G" * 64}, {"name": ""}, {"color": "red"}, {"dtype": "f8"}],
    ids=str,
)
def test_a_reference_is_checked(changed: dict[str, str]) -> None:
    fields = {"name": "a", "dtype": "f32", "shape": (2,), "digest": DIGEST}
    TensorRef.model_validate(fields)
    with pytest.raises(ValidationError):
        TensorRef.model_validate({**fields, **changed})


def test_types_are_frozen() -> None:
    kind = ValueType(dtype="f32", shape=(1,))
    with pytest.raises(ValidationError):
        kind.dtype = "f16"
