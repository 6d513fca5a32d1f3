"""Tokenizers that are published as ``vocab.json`` and ``merges.txt``, as Dream's and DiffuCoder's.

Their own code is never run: it is Qwen2's tokenizer, which transformers has. The added tokens come
from ``tokenizer_config.json``.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdc.checkpoint.folder import BYTE_PAIR_FILES
from qdc.checkpoint.layout import not_readable
from qdc.disk import LARGEST_TOKENIZER
from qdc.errors import InvalidCheckpoint
from qdc.jsontext import TOKENIZER_BOUNDS as BOUNDS
from qdc.jsontext import parse_json
from qdc.modelfiles import read_inside

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VOCABULARY, MERGES = BYTE_PAIR_FILES
CLASSES = ("DreamTokenizer", "Qwen2Tokenizer", "Qwen2TokenizerFast")
"""Names in ``tokenizer_class`` of tokenizers that split text as Qwen2's does."""
MOST_ADDED = 1 << 16


def is_published_so(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a folder has both files and names a class that is known here."""
    known = settings.get("tokenizer_class") in CLASSES
    return known and all((folder / name).is_file() for name in (VOCABULARY, MERGES))


def byte_pair_backend(folder: Path, settings: Mapping[str, Any]) -> "Tokenizer":
    """Build the tokenizer of such a folder.

    Raises:
        InvalidCheckpoint: a file is damaged, or an added token does not get the id that the
            settings give it.
    """
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    names = [VOCABULARY, MERGES]
    build: Callable[..., Qwen2Tokenizer] = Qwen2Tokenizer
    try:
        vocabulary = parse_json(read_inside(folder / VOCABULARY, LARGEST_TOKENIZER), BOUNDS)
        merges = list(_merges(read_inside(folder / MERGES, LARGEST_TOKENIZER).decode("utf-8")))
        built = build(
            vocab=vocabulary, merges=merges, unk_token=None, eos_token=None, pad_token=None
        )
    except OSError as error:
        raise not_readable(Path(error.filename or folder), error) from error
    except Exception as error:  # tokenizers raises no narrower class
        raise InvalidCheckpoint(
            f"{VOCABULARY} and {MERGES} are no tokenizer: {error}",
            where=names,
            help="copy the files again",
        ) from error
    backend: Tokenizer = built.backend_tokenizer
    wrong = []
    for number, content, special in _added(settings):
        token = AddedToken(content, special=special, normalized=False)
        (backend.add_special_tokens if special else backend.add_tokens)([token])
        if backend.token_to_id(content) != number:
            wrong.append(f"{content!r}: {backend.token_to_id(content)} instead of {number}")
    if wrong:
        raise InvalidCheckpoint(
            f"added tokens do not follow on {VOCABULARY}",
            where=wrong,
            help="take all files from the same checkpoint",
        )
    return backend


def _merges(text: str) -> Iterator[tuple[str, str]]:
    """Pairs of tokens, one a line, in the order in which they are joined. Raises ValueError."""
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        if line.startswith("#version"):
            continue
        left, space, right = line.removesuffix("\r").partition(" ")
        if not space or " " in right:
            raise ValueError(f"line {number} of {MERGES} is no pair")
        yield left, right


def _added(settings: Mapping[str, Any]) -> list[tuple[int, str, bool]]:
    """Id, text and whether it is special, of every added token by ascending id."""
    found = settings.get("added_tokens_decoder")
    added = []
    for number, token in (found if isinstance(found, dict) else {}).items():
        content = token.get("content") if isinstance(token, dict) else None
        if not str(number).isdecimal() or not isinstance(content, str) or not content:
            raise InvalidCheckpoint(
                "added_tokens_decoder holds an entry without id or text",
                where=[f"{number}: {token!r}"[:80]],
                help="copy tokenizer_config.json again",
            )
        added.append((int(number), content, bool(token.get("special"))))
    if len(added) > MOST_ADDED:
        raise InvalidCheckpoint(f"added_tokens_decoder holds {len(added)} tokens")
    return sorted(added)
