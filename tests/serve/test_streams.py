"""Events as clients read them, line by line."""

import json

import pytest

from qdc.serve.streams import event


@pytest.mark.parametrize("mark", ["\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_an_event_is_one_line_whatever_counts_as_the_end_of_one(mark: str) -> None:
    """The ``openai`` client reads lines by ``str.splitlines``."""
    sent = event({"text": f"a{mark}b ü 😀"})
    line, blank = sent.splitlines()
    assert blank == ""
    assert json.loads(line.removeprefix("data: ")) == {"text": f"a{mark}b ü 😀"}
    assert "ü 😀" in sent
