"""The autoregressive model that checks drafts, in the class that transformers has for it."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from qdc.checkpoint.folder import Checkpoint, refuse_broken
from qdc.errors import InvalidCheckpoint, QdcError, UnsupportedModel
from qdc.frontend.native import find_class
from qdc.frontend.native_config import first_line, quiet
from qdc.numerics.finite import is_finite
from qdc.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast


class Verifier(Protocol):
    """What adaptive parallel decoding asks of a verifier."""

    vocabulary: int
    """Tokens that it shares with the diffusion model, from 0 on."""

    def score(self, tokens: Sequence[int], first: int) -> Tensor:
        """Logits ``f64[len(tokens) - first, vocabulary]`` of the tokens from ``first`` on.

        Row i predicts ``tokens[first + i]`` from all before it; ``first`` is at least 1.
        """
        ...


class NativeVerifier:
    """A causal language model of transformers, with its keys and values kept between calls."""

    def __init__(self, body: "PreTrainedModel", vocabulary: int) -> None:
        """Wrap a loaded model; ``vocabulary`` is what both tokenizers share."""
        self.body, self.vocabulary = body, vocabulary
        self._cache: DynamicCache | None = None
        self._seen: list[int] = []
        # Releases of transformers differ in the name.
        accepted = inspect.signature(body.forward).parameters
        self._keyword = "cache" if "cache" in accepted else "past_key_values"

    @torch.no_grad()
    def score(self, tokens: Sequence[int], first: int) -> Tensor:
        """See ``Verifier``; what begins as the last call did, is not computed again."""
        from transformers import DynamicCache

        fed = list(tokens[:-1])
        same = next(
            (i for i, (a, b) in enumerate(zip(self._seen, fed, strict=False)) if a != b),
            min(len(self._seen), len(fed)),
        )
        begin = min(same, first - 1)
        if self._cache is None or not begin:
            self._cache, begin = DynamicCache(), 0
        elif begin < len(self._seen):
            self._cache.crop(begin - len(self._seen))
        asked = torch.tensor([fed[begin:]], device=self.body.device)
        cache, self._cache = self._cache, None  # a forward that fails leaves half of it written
        found = self.body(input_ids=asked, use_cache=True, **{self._keyword: cache})
        self._seen, self._cache = fed, cache
        logits: Tensor = found.logits[0, first - 1 - begin :, : self.vocabulary].double()
        return logits


def load_verifier(
    folder: Path, device: str, tokenizer: "PreTrainedTokenizerFast", vocabulary: int
) -> NativeVerifier:
    """Load a verifier for a diffusion model with this tokenizer and so many embeddings.

    Args:
        folder: config.json, tokenizer and safetensors; nothing is fetched, no code of it is run.
        device: where the weights go, in the dtype in which they are stored.
        tokenizer: of the diffusion model. Every token of the verifier's must be in it under the
            same number; it may have further ones, as its mask.
        vocabulary: of the diffusion model.

    Raises:
        QdcError: it is no causal model of transformers, is damaged, or has another tokenizer.
    """
    source = Checkpoint(folder)
    config = source.config
    if config.get("quantization_config") is not None:
        raise UnsupportedModel(
            "the verifier is quantized; verifiers are loaded as transformers stores them",
            where=[str(folder)],
            help="give a full-precision checkpoint of a small autoregressive model",
        )
    shared = min(_shared(tokenizer, load_tokenizer(folder), folder), vocabulary)
    from transformers import AutoModelForCausalLM

    try:
        auto, _ = find_class(config)
    except UnsupportedModel as error:
        raise _not_autoregressive(folder, *error.where) from error
    if auto is not AutoModelForCausalLM:
        raise _not_autoregressive(folder)

    try:
        with quiet(), _no_bar():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(folder),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                attn_implementation="sdpa",  # a configuration may name code of a hub
                dtype="auto",
                output_loading_info=True,
            )
    except Exception as error:  # each model class raises what it likes
        raise UnsupportedModel(
            f"transformers cannot load the verifier: {first_line(error)}", where=[str(folder)]
        ) from error
    body, report = loaded
    _refuse_incomplete(report, folder)
    refuse_broken([n for n, tensor in body.named_parameters() if not is_finite(tensor)])
    rows = int(body.get_input_embeddings().get_parameter("weight").shape[0])
    return NativeVerifier(body.to(device).eval().requires_grad_(False), min(shared, rows))


def _not_autoregressive(folder: Path, *reasons: str) -> UnsupportedModel:
    return UnsupportedModel(
        "the verifier is no autoregressive model",
        where=[str(folder), *reasons],
        help="give a causal language model that transformers has, such as Qwen2ForCausalLM",
    )


@contextmanager
def _no_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _refuse_incomplete(report: Mapping[str, Any], folder: Path) -> None:
    """Refuse a checkpoint with gaps: transformers fills them with random weights."""
    missing = sorted(map(str, (*report["missing_keys"], *report["mismatched_keys"])))
    if missing:
        raise InvalidCheckpoint(
            f"{len(missing)} tensors of the verifier are missing or of another shape",
            where=[str(folder), *missing],
            help="copy the checkpoint again",
        )


def _shared(
    ours: "PreTrainedTokenizerFast", theirs: "PreTrainedTokenizerFast", folder: Path
) -> int:
    """How many ids, from 0 on, mean the same to both.

    Raises ``QdcError`` if plain tokens differ; special ones may, behind all plain ones.
    """
    own = {number: token for token, number in ours.get_vocab().items()}
    other = {number: token for token, number in theirs.get_vocab().items()}
    numbers = own.keys() | other.keys()
    differing = sorted(number for number in numbers if own.get(number) != other.get(number))
    count = differing[0] if differing else max(numbers, default=-1) + 1
    added = {*ours.get_added_vocab(), *theirs.get_added_vocab()}
    odd = [n for n in differing if not {own.get(n), other.get(n)} <= {*added, None}]
    late = [n for n in other if n > count and other[n] not in added]
    if odd or late or not count:
        raise QdcError(
            f"the verifier has another tokenizer: {len(odd or late)} plain tokens differ"
            if odd
            else f"the verifier's tokenizer differs at the special token {count}, in front of "
            f"{len(late)} plain ones",
            where=[str(folder), *(f"{n}: {other.get(n)!r}" for n in (odd or differing)[:4])],
            help="take a verifier of the model's own line: Qwen2.5 for Dream; LLaDA has none, "
            "there --strategy threshold decides several tokens a step",
        )
    return count
