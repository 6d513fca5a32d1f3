"""Options of texts and their records, which several commands share."""

from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator

from qdc.errors import InvalidCalibration, QdcError
from qdc.models.document_tokens import DocumentTokens
from qdc.options import option
from qdc.text.records import DEFAULT_FIELD, Fields


def _when(given: Any) -> Any:
    if given not in get_args(DocumentTokens):
        raise QdcError(
            f"--document-tokens {given!r} is unknown",
            help="known: auto, add, none",
        )
    return given


AroundTexts = Annotated[
    DocumentTokens,
    BeforeValidator(_when),
    option(
        "WHEN",
        "[CLS], BOS ...: auto | add | none",
        more="Special tokens that the tokenizer's own post-processor puts around a whole document "
        "and in front of a prompt; auto leaves them out where published code of the family does",
    ),
]
"""The option ``--document-tokens``."""

Calibration = Annotated[
    Path | None,
    option(
        "PATH",
        "Text, records, dataset folder [default: embedded]",
        more="Records are .jsonl, .json, .csv, .tsv or .parquet files; datasets those of "
        "save_to_disk, parquet or jsonl",
    ),
]
TextField = Annotated[str, option("NAME", "Field with the text of a record")]
ChatFields = Annotated[
    str | None,
    option(
        "NAMES",
        "PROMPT,ANSWER or MESSAGES: fields of a chat",
        more="The fields of a record that hold a prompt and its answer, or that of a list of "
        "messages: only the (last) answer is ever masked",
    ),
]


def read_fields(
    calibration: Path | None, text: str = DEFAULT_FIELD, chat: str | None = None
) -> Fields:
    """Fields of the records of a calibration text.

    Raises:
        InvalidCalibration: the options contradict each other, or there is no file to read.
    """
    fields = Fields.parse(text, chat)
    if fields.option and calibration is None:
        raise InvalidCalibration(
            f"{fields.option} is given, and no file to read it from", help="add --calibration FILE"
        )
    return fields
