"""Between text and tokens: what the page is shown adds up to the text."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdc.errors import QdcError
from qdc.serve.wording import Wording
from qdc.text.tokenizer import Encoder, load_tokenizer
from tests.support.checkpoints import EMBEDDED, MASK, VOCABULARY
from tests.support.tokenizers import write_tokenizer

WORDING = Wording(load_tokenizer(EMBEDDED))


@settings(max_examples=60)
@given(st.lists(st.integers(2, VOCABULARY - 1), max_size=12))
def test_pieces_of_all_tokens_are_the_text(tokens: list[int]) -> None:
    pieces = WORDING.pieces(tokens, [False] * len(tokens))
    assert len(pieces) == len(tokens)
    assert "".join(piece or "" for piece in pieces) == WORDING.decode(tokens)


@given(st.text(max_size=12), st.data())
def test_pieces_are_missing_where_tokens_are(text: str, data: st.DataObject) -> None:
    tokens = WORDING.encode(text)
    masked = data.draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens)))
    pieces = WORDING.pieces(tokens, masked)
    assert [piece is None for piece in pieces] == masked
    if not any(masked):
        assert "".join(piece or "" for piece in pieces) == text


def test_special_tokens_in_a_text_are_text() -> None:
    text = WORDING.decode([MASK])
    assert MASK not in WORDING.encode(f"a{text}b")


def test_conversations(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": "hello"}]
    assert WORDING.decode(WORDING.chat(messages)) == "be\nhello\n"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((EMBEDDED / name).read_bytes())
    template = tmp_path / "chat_template.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}A:")
    assert not WORDING.has_template
    written = Wording(load_tokenizer(tmp_path))
    assert written.has_template
    assert written.decode(written.chat(messages)) == "system:be;user:hello;A:"
    template.write_text("{{ raise_exception('no') }}")
    with pytest.raises(QdcError, match="refuses 2 messages"):
        Wording(load_tokenizer(tmp_path)).chat(messages)


def test_prompts_stand_behind_what_the_tokenizer_puts_in_front(tmp_path: Path) -> None:
    """As the server was started, and as a request wants it; nothing stands there twice."""
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, "llama"))
    wording = Wording(tokenizer)
    begin, plain = 2, wording.encode("a")
    assert wording.prompt("a") == [begin, *plain]
    assert wording.prompt("a", add_special_tokens=False) == plain
    assert wording.prompt("<s>a", special=True) == [begin, *plain]
    assert wording.prompt("<s>a") == [begin, *wording.encode("<s>a")]
    assert wording.chat([{"role": "user", "content": "a"}]) == wording.prompt("a\n")
    withheld = Wording(tokenizer, Encoder(tokenizer, "auto", "somebody"))
    assert withheld.prompt("a") == plain
    assert withheld.prompt("a", add_special_tokens=True) == [begin, *plain]
    tokenizer.chat_template = "<s>{{ messages[0].content }}"
    assert Wording(tokenizer).chat([{"role": "user", "content": "a"}]) == [begin, *plain]
