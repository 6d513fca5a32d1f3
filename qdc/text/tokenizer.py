"""A checkpoint's tokenizer, read from its own files: no network, no code of the checkpoint's."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdc.disk import LARGEST_JSON, LARGEST_TOKENIZER
from qdc.errors import InvalidCalibration, InvalidCheckpoint
from qdc.jsontext import UnfitJson, parse_json
from qdc.modelfiles import COPY, OUTSIDE, read_inside
from qdc.models.document_tokens import DocumentTokens
from qdc.text.byte_pairs import byte_pair_backend, is_published_so
from qdc.text.records import ASSISTANT, Dialogue
from qdc.text.surround import Surround, surround

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
TEMPLATE, TEMPLATE_FIELD = "chat_template.jinja", "chat_template"
SPECIAL = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
FAILURES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What the expressions of a template may raise besides the engine's own errors."""
UNREADABLE = "the tokenizer cannot read a text"
TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """Read ``tokenizer.json`` and, where there is one, ``tokenizer_config.json``.

    In the place of ``tokenizer.json`` may stand ``vocab.json`` and ``merges.txt``, see
    ``byte_pairs``.

    Of the settings only the special tokens, the two settings of decoding and length, and the
    chat template count, which ``chat_template.jinja`` replaces; classes that it names are never
    loaded. Templates run in the sandbox of transformers. Stored truncation and padding are switched
    off, for documents are tokenised whole. Raises InvalidCheckpoint for a file that is missing or
    damaged, and for special tokens outside the vocabulary, whose ids the model would not know.
    """
    backend = _backend(folder)
    settings = _settings(folder / SETTINGS)
    from transformers import PreTrainedTokenizerFast

    unknown = [
        f"{name} {token!r}"
        for name, token in settings.items()
        if name in SPECIAL and backend.token_to_id(token) is None
    ]
    if unknown:
        raise InvalidCheckpoint(
            f"{SETTINGS} names special tokens that {TOKENIZER} lacks",
            where=unknown,
            help="take both files from the same checkpoint",
        )
    backend.no_truncation()
    backend.no_padding()
    build: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    tokenizer = build(tokenizer_object=backend, **settings)
    tokenizer.deprecation_warnings[TOO_LONG] = True
    tokenizer.chat_template = _template(folder)
    return tokenizer


def _backend(folder: Path) -> "Tokenizer":
    if not (folder / TOKENIZER).is_file():
        settings = _read(folder / SETTINGS)
        if is_published_so(folder, settings):
            return byte_pair_backend(folder, settings)
        raise InvalidCheckpoint(
            f"the checkpoint has no {TOKENIZER}",
            where=[TOKENIZER],
            help="load its tokenizer with transformers and store it with save_pretrained",
        )
    from tokenizers import Tokenizer

    try:
        data = read_inside(folder / TOKENIZER, LARGEST_TOKENIZER)
    except OSError as error:
        raise _unreadable(folder / TOKENIZER, error) from error
    with faults_named(f"{TOKENIZER} is no tokenizer"):
        return Tokenizer.from_buffer(data)


@contextmanager
def faults_named(what: str) -> Iterator[None]:
    """Raise ``InvalidCheckpoint`` for what tokenizers raises.

    That is no class narrower than ``Exception``, and where its code panics, not even that.
    """
    try:
        yield
    except InvalidCheckpoint:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InvalidCheckpoint(
            f"{what}: {error}", where=[TOKENIZER], help="copy the file again"
        ) from error


class Encoder:
    """From text to token ids.

    A special token that is written in a text is text: no document can mask or end itself. Where it
    is meant, ``special`` says so. What the model was trained to see around a document is put there
    by ``document`` and ``prompt``; a call encodes a piece of text, which has nothing around it.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        document_tokens: DocumentTokens = "auto",
        published_without: str = "",
    ) -> None:
        """Use this tokenizer.

        Args:
            tokenizer: of a checkpoint.
            document_tokens: whether a whole document gets what the tokenizer's post-processor
                puts around a text.
            published_without: for ``auto``: published code that puts nothing there although the
                tokenizer may; empty if the tokenizer decides.

        Raises:
            InvalidCheckpoint: the post-processor does something else to a text than that.
        """
        self.tokenizer = tokenizer
        self.unknown: int | None = tokenizer.unk_token_id
        """What stands for text that the tokenizer does not know; most know all text."""
        with faults_named(UNREADABLE):
            offered = Surround() if document_tokens == "none" else surround(tokenizer)
        withheld = document_tokens == "auto" and bool(published_without)
        self.surround = Surround() if withheld else offered
        """What stands before and after a whole document; both are empty for most decoders."""
        self.withheld = ""
        """Which special tokens of the tokenizer are left out, in words; empty if none is."""
        if withheld and offered != Surround():
            self.withheld = (
                f"the tokenizer makes of a text {self._form(offered)!r}; as in "
                f"{published_without}, nothing is added; --document-tokens add adds it"
            )

    def __call__(self, text: str) -> list[int]:
        """Encode a piece of text, without anything around it."""
        with faults_named(UNREADABLE):
            ids: list[int] = self.tokenizer.encode(
                text, add_special_tokens=False, split_special_tokens=True
            )
        return ids

    def piece(self, text: str, *, special: bool = False) -> list[int]:
        """Encode a piece of text; ``special``: special tokens written in it are meant."""
        return encode_marked(self.tokenizer, text) if special else self(text)

    def document(self, text: str, *, special: bool = False) -> list[int]:
        """Encode a whole document, between what the model was trained to see around one.

        Where the text itself writes that (``special``), it does not stand there twice.
        """
        ids = self.piece(text, special=special)
        return self.missing(ids, special=special).around(ids)

    def prompt(self, text: str, *, special: bool = False) -> list[int]:
        """Encode the beginning of a document, which is to be continued: nothing closes it."""
        ids = self.piece(text, special=special)
        return [*self.missing(ids, special=special).before, *ids]

    def missing(self, ids: Sequence[int], *, special: bool = False) -> Surround:
        """What has yet to be put around the ids of a whole text, which may write it itself."""
        return self.surround.lacking(ids) if special else self.surround

    @property
    def form(self) -> str:
        """What a document looks like, as in ``[CLS] text [SEP]``; empty if it stands alone."""
        return "" if self.surround == Surround() else self._form(self.surround)

    def _form(self, around: Surround) -> str:
        before, after = map(self.tokenizer.convert_ids_to_tokens, map(list, around))
        return " ".join([*before, "text", *after])

    def dialogue(self, dialogue: Dialogue) -> tuple[list[int], list[int]]:
        """Encode a prompt and its answer, in the form of the chat template if there is one.

        The prompt ends where the model would begin to write; the answer takes along how a turn
        ends. Without a template, turns are lines of one document. Raises InvalidCalibration if the
        template refuses the messages.
        """
        if self.tokenizer.chat_template is None:
            prompt = "\n".join(turn.content for turn in dialogue.prompt) + "\n"
            answered = self(dialogue.answer)
            return self.prompt(prompt), [*answered, *self.surround.after] if answered else []
        given = [turn._asdict() for turn in dialogue.prompt]
        answer = {"role": ASSISTANT, "content": dialogue.answer}
        prompt, whole = self._rendered(given, True), self._rendered([*given, answer], False)
        if not dialogue.answer or not whole.startswith(prompt):
            return self.piece(prompt, special=True), self(dialogue.answer)
        behind = whole[len(prompt) :]
        return self.piece(prompt, special=True), self.piece(behind, special=True)

    def _rendered(self, messages: list[dict[str, str]], opens_answer: bool) -> str:
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=opens_answer
            )
        except (TemplateError, *FAILURES) as error:
            raise InvalidCalibration(
                f"the chat template refuses a dialogue of {len(messages)} turns: {error}",
                where=[TEMPLATE],
                help="check the roles of the messages, or the template of the model",
            ) from error
        return str(text)


def encode_marked(tokenizer: "PreTrainedTokenizerFast", text: str) -> list[int]:
    """Encode text in which special tokens are meant. Raises ``InvalidCheckpoint``."""
    with faults_named(UNREADABLE):
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def decode_marked(tokenizer: "PreTrainedTokenizerFast", ids: list[int], **settings: bool) -> str:
    """Write text, special tokens included. Raises ``InvalidCheckpoint``."""
    with faults_named("the tokenizer cannot write these tokens"):
        return str(tokenizer.decode(ids, skip_special_tokens=False, **settings))


def encoder(
    tokenizer: "PreTrainedTokenizerFast",
    document_tokens: DocumentTokens = "auto",
    published_without: str = "",
) -> Encoder:
    """Turn a tokenizer into a function from text to ids. Arguments as for ``Encoder``."""
    return Encoder(tokenizer, document_tokens, published_without)


def _settings(path: Path) -> dict[str, Any]:
    found = _read(path)
    kept = {name: _token(found[name], name) for name in SPECIAL if found.get(name) is not None}
    length = found.get("model_max_length")
    if isinstance(length, int) and not isinstance(length, bool) and length > 0:
        kept["model_max_length"] = length
    if isinstance(found.get("clean_up_tokenization_spaces"), bool):
        kept["clean_up_tokenization_spaces"] = found["clean_up_tokenization_spaces"]
    return kept


def _template(folder: Path) -> str | None:
    """The chat template: of its own file, or of the settings; of several, the default one."""
    own = folder / TEMPLATE
    if own.is_file():
        try:
            return read_inside(own, LARGEST_JSON).decode("utf-8")
        except ValueError as error:
            raise InvalidCheckpoint(f"{TEMPLATE} is not UTF-8", where=[TEMPLATE]) from error
        except OSError as error:
            raise _unreadable(own, error) from error
    found = _read(folder / SETTINGS).get(TEMPLATE_FIELD)
    for named in found if isinstance(found, list) else []:
        if isinstance(named, dict) and named.get("name") == "default":
            found = named.get("template")
    return found if isinstance(found, str) else None


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found: object = parse_json(read_inside(path, LARGEST_JSON))
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnfitJson as error:
        raise InvalidCheckpoint(f"{SETTINGS} {error}", where=[SETTINGS]) from error
    except ValueError as error:
        raise InvalidCheckpoint(
            f"{SETTINGS} is no valid JSON: {error}", where=[SETTINGS], help="copy the file again"
        ) from error
    if not isinstance(found, dict):
        raise InvalidCheckpoint(
            f"{SETTINGS} holds no object", where=[SETTINGS], help="copy the file again"
        )
    return found


def _unreadable(path: Path, error: OSError) -> InvalidCheckpoint:
    reason = (error.strerror or "unknown reason").lower()
    help = COPY if error.strerror == OUTSIDE else ""
    return InvalidCheckpoint(f"cannot read {path.name}: {reason}", where=[str(path)], help=help)


def _token(value: object, name: str) -> Any:
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str):
        raise InvalidCheckpoint(
            f"{SETTINGS} gives no text for {name}", where=[SETTINGS], help="copy the file again"
        )
    return content
