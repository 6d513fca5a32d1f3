"""The encoder of a model folder: its tokenizer, and what its family puts around a text."""

from pathlib import Path
from typing import TYPE_CHECKING

from qdc.artifact.config import QUANTIZATION, parse_quantization, plain_config
from qdc.checkpoint.folder import read_json
from qdc.frontend.select import Choice, choose
from qdc.models.document_tokens import DocumentTokens
from qdc.models.families import BUILT_IN, Families
from qdc.text.tokenizer import Encoder, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def open_encoder(
    folder: Path,
    document_tokens: DocumentTokens = "auto",
    choice: Choice = "auto",
    families: Families = BUILT_IN,
    tokenizer: "PreTrainedTokenizerFast | None" = None,
) -> Encoder:
    """Open the tokenizer of a checkpoint, or of an artifact.

    Args:
        folder: has ``config.json`` and the tokenizer's files.
        document_tokens: whether a whole text gets what the post-processor puts around it;
            ``auto`` is what an artifact was compiled with, else as published code of the family,
            else, as for every class of transformers, as the tokenizer says.
        choice: front end of the checkpoint; an artifact knows its own.
        families: the model families that are known.
        tokenizer: that of the folder, if it is open already.

    Raises:
        InvalidCheckpoint: a file is missing or damaged.
        InvalidArtifact: what the artifact says of itself is damaged.
    """
    config = read_json(folder / "config.json")
    if config.get(QUANTIZATION) is not None:
        quantization = parse_quantization(config)
        # A module has no class, and so no family, as a class of transformers has none.
        choice = "export" if quantization.frontend == "module" else quantization.frontend
        if document_tokens == "auto":
            document_tokens = quantization.document_tokens
    plain = plain_config(config)
    family = families.find(plain) if choose(plain, choice, families) == "fx" else None
    return Encoder(
        tokenizer or load_tokenizer(folder),
        document_tokens,
        "" if family is None else family.published_without,
    )
