"""What ``run`` and ``eval`` share: open an artifact or a checkpoint with its tokenizer."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from qdc.artifact.config import parse_quantization, plain_config
from qdc.artifact.digests import Digests
from qdc.checkpoint.folder import read_json
from qdc.cli.terminal import tell_withheld
from qdc.errors import QdcError
from qdc.frontend.encoding import open_encoder
from qdc.frontend.native import NativeModel
from qdc.frontend.select import choose, read_facts
from qdc.ir.facts import ModelFacts
from qdc.models.document_tokens import DocumentTokens
from qdc.models.family import Family
from qdc.numerics.products import has_matrices, wide_products
from qdc.pipeline.registry import standard_registry
from qdc.runtime.auto import chosen_backend
from qdc.runtime.decoding.facts import DecodeFacts
from qdc.runtime.decoding.generation_fields import GENERATION
from qdc.runtime.decoding.speech import decode_facts
from qdc.runtime.decoding.strategies import Strategies
from qdc.runtime.device import find_device
from qdc.runtime.load import front_end_of, load_artifact, load_checkpoint
from qdc.runtime.options import AUTO
from qdc.text.tokenizer import Encoder, decode_marked, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

REFERENCE = "reference"
"""The backend that decodes all weights: what others are compared with."""


@dataclass(frozen=True)
class Opened:
    """A model that is ready to run."""

    module: nn.Module
    facts: ModelFacts
    encode: Encoder
    decode: Callable[[list[int]], str]
    compiled: bool
    device: str
    tokenizer: "PreTrainedTokenizerFast"
    config: Mapping[str, Any]
    """The model's own fields of ``config.json``."""
    strategies: Strategies
    """Of decoding, by name, those of the plugins among them."""
    family: Family | None = None
    """Of the model, if it is built here."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """``generation_config.json``, if there is one."""

    @functools.cached_property
    def decoding(self) -> DecodeFacts:
        """What the decoding loop has to know. Raises ``UnsupportedModel`` without a mask token."""
        return decode_facts(self.facts, self.tokenizer, self.config, self.family, self.generation)

    @functools.cached_property
    def _multiplies(self) -> bool:
        return has_matrices(self.module)

    @property
    def logits_shift(self) -> int:
        """1 if position i of the logits predicts token i + 1."""
        return self.facts.logits_shift

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits ``i64[b, length] -> [b, length, vocabulary]``; the tokens may be on the CPU."""
        with wide_products(self.device, needed=self._multiplies):
            found: Tensor = self.module(tokens.to(self.device))
        return found


def open_runnable(
    folder: Path,
    device: str,
    plugins: Sequence[Path],
    backend: str = AUTO,
    document_tokens: DocumentTokens = "auto",
    *,
    verify: bool = True,
    exact: bool = False,
) -> Opened:
    """Load either kind of folder; an artifact is run by the backend of this name.

    With ``verify`` the files of an artifact must have the digests that it was written with. With
    ``exact`` the backend that ``auto`` stands for multiplies in fp32. Says on stderr which special
    tokens of the tokenizer are left out.

    Raises ``QdcError`` saying what is wrong with it.
    """
    device = find_device(device)
    registry = standard_registry(plugins)
    if folder.is_file():
        _refuse_file(folder)
    config = read_json(folder / "config.json")
    compiled = config.get("quantization_config") is not None
    asked = backend
    if exact and (chosen := chosen_backend(backend, device, None, exact=True)) != REFERENCE:
        backend = chosen
    if compiled:
        if verify:
            Digests.of(folder).check_companions()
        module = load_artifact(folder, registry, device, None, backend, verify=verify)
    else:
        _refuse_plain(folder, asked)
        module = load_checkpoint(folder, device, torch.float32, families=registry.families)
    families = registry.families
    front_end = (
        front_end_of(parse_quantization(config)) if compiled else choose(config, families=families)
    )
    plain = plain_config(config)
    facts = read_facts(plain, folder, front_end, families)
    if isinstance(module, NativeModel) and not module.has_head:
        raise QdcError(
            "the model has no output head: it gives hidden states, from which no token follows",
            where=[str(folder)],
            help="qdc.load gives the module; run and eval are for models that predict tokens",
        )
    tokenizer = load_tokenizer(folder)
    generation = folder / GENERATION
    encode = open_encoder(folder, document_tokens, families=families, tokenizer=tokenizer)
    tell_withheld(encode.withheld)

    def decode(ids: list[int]) -> str:
        return decode_marked(tokenizer, ids)

    return Opened(
        module,
        facts,
        encode,
        decode,
        compiled,
        device,
        tokenizer,
        plain,
        registry.strategies,
        families.find(plain) if front_end == "fx" else None,
        read_json(generation) if generation.exists() else {},
    )


def _refuse_plain(folder: Path, backend: str) -> None:
    """A checkpoint has nothing for a backend to run."""
    if backend not in (AUTO, REFERENCE):
        raise QdcError(
            f"the model is not compiled, and the backend {backend} runs artifacts",
            where=[str(folder)],
            help="compile it first: qdc compile MODEL -o OUT, or leave --backend out",
        )


def _refuse_file(path: Path) -> NoReturn:
    """Say what the file is, and the artifact if it lies in one."""
    inside = (path.parent / "config.json").is_file()
    folder = f"the folder {path.parent}" if inside else "the artifact, the OUT of qdc compile"
    what = "a file, not an artifact or a model folder"
    if path.suffix == ".qdc":
        what = "an IR dump and holds no weights"
    raise QdcError(f"{path} is {what}", help=f"give {folder}")
