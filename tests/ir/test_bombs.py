"""A dump of a few bytes takes little memory, whatever it promises."""

import tracemalloc

import pytest

from qdc.errors import InvalidDump, QdcError, printable
from qdc.ir.dump import from_bytes
from tests.ir.dumps import TAGS

COUNT = 1 << 18
EMPTY = {"lists": b"\x90", "maps": b"\x80", "extensions": b"\xd4\x01\x00"}


@pytest.mark.parametrize("kind", EMPTY)
def test_many_empty_containers_are_refused_early(kind: str) -> None:
    data = b"\xdd" + COUNT.to_bytes(4, "big") + EMPTY[kind] * COUNT
    tracemalloc.start()
    try:
        with pytest.raises(InvalidDump):
            from_bytes(data, TAGS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 25 * len(data)


def test_messages_steer_no_terminal_and_end() -> None:
    error = QdcError("bad\x1b[2J\x00", where=["a\u202eb\n", "x" * 10_000], help="é\x07")
    text = str(error)
    assert "\x1b" not in text
    assert "bad\\x1b[2J\\x00" in text
    assert "a\\u202eb" in text
    assert "é\\x07" in text
    assert len(text) < 1000
    assert printable("plain\nté") == "plain\nté"
