"""Documents as one circle of tokens: the same whether all are tokenized, or what is taken."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from qdc.errors import InvalidCalibration
from qdc.text import joined as joined_module
from qdc.text.joined import join
from qdc.text.source import read_source, read_text
from qdc.text.stored import Documents
from qdc.text.tokenizer import Encoder

WORDS = [f"w{number}" for number in range(500)]


def encode(text: str) -> list[int]:
    """A number a word."""
    return [int(word[1:] or 0) for word in text.split()]


def written(lengths: list[int], blank: str = " ") -> list[str]:
    """Documents of words that count on, so that a token tells its place."""
    numbers = iter(range(10_000))
    return [blank.join(f"w{next(numbers)}" for _ in range(length)) for length in lengths]


def around(before: bool, after: bool) -> Encoder:
    """A tokenizer of words whose post-processor adds what it is told to."""
    special = [("[CLS]", 0), ("[SEP]", 1)]
    vocabulary = {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2} | {w: n + 3 for n, w in enumerate(WORDS)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if before or after:
        form = f"{'[CLS] ' if before else ''}$A{' [SEP]' if after else ''}"
        made.post_processor = processors.TemplateProcessing(single=form, special_tokens=special)
    build: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    return Encoder(build(tokenizer_object=made, unk_token="[UNK]"))


@settings(max_examples=30, deadline=None)
@example(lengths=[5, 60, 56], blank=" ", place=0.5078125, length=2, whole=1, step=1)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    blank=st.sampled_from([" ", "\n", "  \n "]),
    place=st.floats(0, 1, exclude_max=True),
    length=st.integers(1, 80),
    whole=st.sampled_from([1, 40, 1000]),
    step=st.integers(1, 60),
)
def test_around_a_window_text_is_tokenized_as_in_whole_documents(
    lengths: list[int], blank: str, place: float, length: int, whole: int, step: int
) -> None:
    documents = written(lengths, blank)
    everything = [number for document in documents for number in encode(document)]
    owners = [number for number, size in enumerate(lengths) for _ in range(size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joined_module, "SMALL", 0)
        patch.setattr(joined_module, "WHOLE", whole)
        patch.setattr(joined_module, "STEP", step)
        found = join(documents, encode)
        assert not found.counted
        [window], [documents_of] = found.take([int(place * found.size)], length)
        first = everything.index(int(window[0]))
        expected = [(first + offset) % len(everything) for offset in range(length)]
        assert window.tolist() == [everything[place] for place in expected]
        assert documents_of.tolist() == [owners[place] for place in expected]
        assert found.whole().take([0], len(everything)).windows[0].tolist() == everything


@settings(max_examples=40, deadline=None)
@given(
    text=st.text(st.sampled_from("aé€😀 "), min_size=1, max_size=40),
    cuts=st.lists(st.integers(0, 200), max_size=5),
    mark=st.booleans(),
)
def test_parts_of_a_long_text_make_it_up(
    text: str, cuts: list[int], mark: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" * mark + text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qdc.text.source.SMALL", 0)
        if text.isspace():
            with pytest.raises(InvalidCalibration):
                read_text(path)
            return
        source = read_text(path)
    documents = source.documents
    assert isinstance(documents, Documents)
    assert (tuple(documents), documents.characters) == ((text,), len(text))
    size = int(documents.ends[-1])
    assert size == len(text.encode())
    places = sorted({0, size, *(cut for cut in cuts if cut < size)})
    parts = [documents.part(0, a, b) for a, b in pairwise(places)]
    assert "".join(parts) == text
    assert source.digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("before", "after", "ids"),
    [
        (True, True, [0, 3, 4, 1, 0, 5, 1]),
        (True, False, [0, 3, 4, 0, 5]),
        (False, False, [3, 4, 5]),
    ],
)
def test_documents_are_separated_as_the_tokenizer_does(
    before: bool, after: bool, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, documents = around(before, after), ["w0 w1", "w2"]
    found = join(documents, encoder)
    assert (found.counted, found.tokens()) == (True, len(ids))
    assert found.take([0], len(ids)).windows.tolist() == [ids]
    monkeypatch.setattr(joined_module, "SMALL", 0)
    assert join(documents, encoder).take([0], len(ids)).windows.tolist() == [ids]
    assert join(documents, encoder).tokens() == len(ids)


def test_an_end_of_text_separates_where_nothing_else_does() -> None:
    encoder = around(False, False)
    encoder.tokenizer.eos_token = "[SEP]"
    assert join(["w0 w1", "w2"], encoder).take([0], 5).windows.tolist() == [[3, 4, 1, 5, 1]]


def test_large_files_are_read_as_small_ones_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blank lines, null records, a byte order mark, U+2028, chats; counts and digests."""
    (tmp_path / "a.jsonl").write_bytes(
        b'\xef\xbb\xbf{"text": "one"}\n\n{"text": null}\r\n{"text": " "}\nnull\n'
        + '{"text": "zwei \u2028 é"}\n  {"text": "three"}'.encode()
    )
    (tmp_path / "b.json").write_text('{"text": "x"}\n{"text": "y"}\n')
    (tmp_path / "c.json").write_text('[{"text": "x"}, {"text": "y"}]')
    (tmp_path / "d.csv").write_text("text\nx\n\ny\n")
    names = ("a.jsonl", "b.json", "c.json", "d.csv", ".")
    small = [read_text(tmp_path / name) for name in names]
    monkeypatch.setattr("qdc.text.source.SMALL", 0)
    monkeypatch.setattr("qdc.text.scanning.PIECE", 7)
    for name, expected in zip(names, small, strict=True):
        found = read_text(tmp_path / name)
        assert tuple(found.documents) == expected.documents
        assert found._replace(documents=expected.documents) == expected
        assert isinstance(found.documents, Documents) == (name in ("a.jsonl", "b.json", "."))
    assert (small[0].skipped, len(small[0].documents)) == (3, 3)


def test_mistakes_in_large_files_name_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qdc.text.source.SMALL", 0)
    monkeypatch.setattr("qdc.text.scanning.PIECE", 8)
    good = b'{"text": "one"}\n\n'
    path = tmp_path / "a.jsonl"
    for bad, said in (
        (b'{"text": 3}', "holds a number, need text\n  at    a.jsonl line 3"),
        (b'{"text": "x"} y', "no valid JSON at column 15: extra data\n  at    a.jsonl line 3"),
        (b'{"text": "\xff"}', f"byte {len(good) + 10} is not UTF-8\n  at    a.jsonl"),
        (b'{"text": "\0"}', f"byte {len(good) + 10} is zero, this is no text\n  at    a.jsonl"),
        (b'{"text": "' + b"x" * 60 + b'"}', "longer than 0 MiB\n  at    a.jsonl line 3"),
    ):
        monkeypatch.setattr("qdc.text.scanning.LONGEST_LINE", 50)
        path.write_bytes(good + bad)
        with pytest.raises(InvalidCalibration) as caught:
            read_text(path)
        assert said in str(caught.value)


def test_a_file_that_changes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdc.text.source.SMALL", 0)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n')
    source = read_text(path)
    path.write_text('{"text": "one, two"}\n')
    with pytest.raises(InvalidCalibration, match="has changed since it was looked through"):
        source.documents[0]


def test_dialogues_of_a_large_file_are_read_when_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qdc.text.records import Fields

    path, chat = tmp_path / "a.jsonl", Fields.parse(chat="q,a")
    path.write_text("\n".join(json.dumps({"q": f"q{n}", "a": f"a{n}"}) for n in range(5)))
    small = read_source(path, chat)
    monkeypatch.setattr("qdc.text.source.SMALL", 0)
    large = read_source(path, chat)
    assert not isinstance(large.dialogues, tuple)
    assert tuple(large.dialogues) == small.dialogues


def test_text_without_a_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for small in (1 << 22, 0):
        monkeypatch.setattr(joined_module, "SMALL", small)
        with pytest.raises(InvalidCalibration, match="found no token in 2 documents of 5 charac"):
            join(["?!", "..."], lambda text: [])


MEMORY = """
import resource, sys
from pathlib import Path
from qdc.text.joined import join
from qdc.text.source import read_text
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for file in sys.argv[1:]:
    found = join(read_text(Path(file)).documents, lambda text: [len(w) for w in text.split()])
    found.take([n * found.size // 64 for n in range(64)], 128)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """60 MB in 24 MB; 1 GiB takes 1.5 s as text, 5 to 10 s as lines, and no more memory."""
    words = " ".join(f"word{number}" for number in range(2000))
    files = [(tmp_path / "a.txt", words), (tmp_path / "a.jsonl", json.dumps({"text": words}))]
    for path, line in files:
        with path.open("w") as file:
            file.writelines([line + "\n"] * (60_000_000 // len(line)))
    command = [sys.executable, "-c", MEMORY, *(str(path) for path, _ in files)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    kibibytes = int(found.stdout)
    assert kibibytes < 24 * 1024


def test_positions_of_a_counted_text_are_tokens() -> None:
    found = join(written([3, 2]), encode)
    assert (found.size, found.places(7), found.count, found.characters) == (5, 7, 2, 8 + 5)
    windows, documents = found.take([4, 0], 3)
    assert windows.tolist() == [[4, 0, 1], [0, 1, 2]]
    assert torch.equal(documents, torch.tensor([[1, 0, 0], [0, 0, 0]]))


def test_a_line_of_json_is_counted_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two", "more": [' + "[]," * 300_000 + "[]]}\n")
    with pytest.raises(InvalidCalibration, match="lists and objects") as caught:
        read_text(path)
    assert "line 2" in caught.value.where[0]
