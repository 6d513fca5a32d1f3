"""The annotation of tuned parameters: what fits a node, what does not, what it costs."""

import pytest

from qdc.ir.tuned import Tuned
from qdc.ir.types import Parameter, TensorRef
from qdc.ir.verify import verify
from tests.ir.verdicts import problems
from tests.support.graphs import annotated, ref, two_blocks


def tuned(**tensors: TensorRef) -> Tuned:
    return Tuned(roles=tuple(tensors), tensors=tuple(tensors.values()))


def test_a_bias_may_be_replaced_or_added() -> None:
    graph = annotated(
        two_blocks(),
        h0__gate=tuned(bias=ref("a", 16, dtype="f16")),
        h0__up=tuned(bias=ref("b", 16)),
    )
    verify(graph, tensors={"a", "b"})
    gate, up = (graph.require(name, Tuned) for name in ("h0.gate", "h0.up"))
    assert gate.text() == "bias f16[16]"
    assert gate.added(graph["h0.gate"]) == ("bias",)
    assert gate.added_bytes(graph["h0.gate"]) == 32
    assert up.added(graph["h0.up"]) == ()
    assert up.added_bytes(graph["h0.up"]) == 32, "f32 in place of the checkpoint's f16"
    assert gate.find("bias") == ref("a", 16, dtype="f16")
    assert gate.find("weight") is None


@pytest.mark.parametrize(
    ("note", "where", "what"),
    [
        (tuned(bias=ref("a", 8)), "h0__gate", "bias f32[8] does not fit [16]"),
        (tuned(bias=ref("a", 8)), "h0__up", "bias f32[8] does not fit [16]"),
        (tuned(bias=ref("a", 16, dtype="i8")), "h0__gate", "bias is i8, not floating point"),
        (tuned(weight=ref("a", 16, 8)), "h0__gate", "the weight of a linear is lowered, not tuned"),
        (tuned(gain=ref("a", 16)), "h0__gate", "the node has no gain"),
        (tuned(bias=ref("a", 16)), "h0__mul", "the node has no bias"),
        (Tuned(roles=("bias",), tensors=(ref("a", 16),) * 2), "h0__gate", "1 roles for 2 tensors"),
        (
            Tuned(roles=("bias", "bias"), tensors=(ref("a", 16),) * 2),
            "h0__gate",
            "a role is tuned twice",
        ),
    ],
)
def test_what_does_not_fit_the_node_is_refused(note: Tuned, where: str, what: str) -> None:
    said, place = problems(annotated(two_blocks(), **{where: note}))
    assert what in said
    assert place == (f"%{where.replace('__', '.')}",)


def test_a_gain_costs_nothing_extra() -> None:
    gain = Parameter(name="n.weight", dtype="f16", shape=(8,))
    node = two_blocks()["h0.gate"].model_copy(update={"op": "rms-norm", "parameters": (gain,)})
    note = tuned(weight=ref("a", 8, dtype="f16"))
    assert list(note.problems(node)) == []
    assert note.added_bytes(node) == 0
