"""What an evaluation may be asked for: of held-out text, or of tasks."""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, model_validator

from qdc.errors import QdcError
from qdc.evaluation.harness.options import (
    Batch,
    Guidance,
    LikelihoodOptions,
    Masks,
    Scorer,
    Seed,
)
from qdc.ir.text_use import HeldOutPack
from qdc.options import Options, as_list, option, switch
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.options import AUTO, Device, Plugins, RunBackend, Verify
from qdc.text.options import AroundTexts, TextField
from qdc.text.records import DEFAULT_FIELD

OF_TEXT = (
    "ratios", "length", "windows", "seeds", "infills", "text_field", "pack", "hide", "report",
)  # fmt: skip
OF_LIKELIHOODS = ("scorer", "mc_num", "cfg", "seed")
OF_TASKS = ("include", "limit", "shots", *OF_LIKELIHOODS, "generate", "chat")

OUTSIDE_BRACES = re.compile(r",(?![^{}]*})")
"""Commas, but for those within a strategy's own options: ``strategy=mine{lengths=1,2}``."""


def as_ratios(given: Any) -> Any:
    """Mask ratios from ``0.15,0.5``, for a validator. Raises ``QdcError``."""
    if not isinstance(given, str):
        return given
    try:
        found = tuple(float(part) for part in given.split(","))
    except ValueError as error:
        raise QdcError(
            f"--ratios {given!r} is no list of numbers", help="--ratios 0.15,0.5"
        ) from error
    if not all(0 < ratio <= 1 for ratio in found):
        raise QdcError(f"--ratios {given!r} leaves 0..1", help="--ratios 0.15,0.5,0.85")
    return found


def as_decoding(given: Any) -> Any:
    """Decoding options from ``length=64,block=32``, for a validator. Raises ``QdcError``."""
    if not isinstance(given, str):
        return given
    found: dict[str, str] = {}
    for part in OUTSIDE_BRACES.split(given):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name or not value:
            raise QdcError(
                f"--generate {given!r} is no list of options", help="--generate length=64,block=32"
            )
        found[name.replace("-", "_")] = value
    return DecodeOptions.parse(**found)


class EvaluationOptions(Options):
    """Everything that a user says of an evaluation; no option of the other kind is ignored."""

    refusal: ClassVar[str] = "an evaluation cannot be asked for that"
    manual: ClassVar[str] = "qdc eval --help names the options"

    models: Annotated[
        tuple[Path, ...],
        option("MODEL", "Artifacts or model folders", argument=True, repeated=True),
    ]
    text: Annotated[Path | None, option("PATH", "Held-out text, records, dataset folder")] = None
    against: Annotated[
        Path | None, option("MODEL", "Compare with this [of several: the first]")
    ] = None
    ratios: Annotated[
        tuple[float, ...], BeforeValidator(as_ratios), option("LIST", "Mask ratios")
    ] = (0.15, 0.5, 0.85)
    length: Annotated[int | None, option("N", "Tokens of a window [default: the model's]")] = None
    windows: Annotated[int, option("N", "Most windows to use")] = 32
    seeds: Annotated[int, option("N", "Mask drawings of each window and ratio")] = 2
    infills: Annotated[int, option("N", "Gaps that both models fill greedily")] = 16
    text_field: TextField = DEFAULT_FIELD
    pack: Annotated[
        HeldOutPack,
        option(
            "NAME",
            "How documents fill a window: documents, within",
            more="documents: joined, cut at its end; within: each by itself, what is left dropped",
        ),
    ] = "documents"
    hide: Annotated[
        Literal["block", "all"],
        option(
            "NAME",
            "What attention blocks hide: block, all",
            more="block: places of one block, behind the clean text before it, as models that go "
            "block by block are trained and sampled; all: places of all blocks at once. For models "
            "whose attention goes by blocks alone",
        ),
    ] = "block"
    tasks: Annotated[
        tuple[str, ...],
        BeforeValidator(as_list),
        option("LIST", "Tasks of lm-eval, instead of --text"),
    ] = ()
    include: Annotated[Path | None, option("DIR", "Your tasks' yaml; may run code in it")] = None
    limit: Annotated[int | None, option("N", "Documents of each task")] = None
    shots: Annotated[int | None, option("N", "Examples in a prompt")] = None
    scorer: Annotated[
        str,
        option(
            "NAME",
            "auto | llada | dream | dream-published",
            more="auto is that of the family's own evaluation",
        ),
    ] = "auto"
    mc_num: Masks = 128
    cfg: Guidance = 0.0
    generate: Annotated[
        DecodeOptions | None,
        BeforeValidator(as_decoding),
        option(
            "LIST",
            "Decoding: length=64,block=32,...",
            more="What is given wins over what a task says",
            verbatim=True,
        ),
    ] = None
    chat: Annotated[bool, switch("Prompts in the chat template")] = False
    document_tokens: AroundTexts = "auto"
    seed: Seed = 1234
    batch: Batch = 16
    device: Device = "cpu"
    backend: RunBackend = AUTO
    report: Annotated[bool, switch("Add the figures to the artifact's report")] = False
    plugins: Plugins = ()
    verify: Verify = True

    @property
    def compared(self) -> bool:
        """Whether models are compared with one of them, or with another."""
        return self.against is not None or len(self.models) > 1

    def likelihoods(self, scorer: Scorer) -> LikelihoodOptions:
        """How likelihoods are estimated, where ``scorer`` is that of the model's family."""
        chosen = scorer if self.scorer == "auto" else self.scorer
        given = self.model_dump(include={"mc_num", "cfg", "seed", "batch"})
        return LikelihoodOptions.parse(scorer=chosen, **given)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        text, given = self.text is not None, self.model_fields_set
        if text == bool(self.tasks):
            count = "both" if text else "neither"
            raise QdcError(
                f"{count} of '--text' and '--tasks' given, need one",
                help="--text held.jsonl measures on held-out text, --tasks arc_easy on tasks",
            )
        mine, other = ("--text", OF_TASKS) if text else ("--tasks", OF_TEXT)
        wrong = [f"--{name.replace('_', '-')}" for name in other if name in given]
        if self.chat and "document_tokens" in given:
            wrong, mine = [*wrong, "--document-tokens"], "--chat: the template writes its own"
        if "infills" in given and not self.compared:
            wrong, mine = ["--infills"], "one model"
        if wrong:
            raise QdcError(f"{', '.join(wrong)} changes nothing with {mine}", help="leave it out")
        return self

    @model_validator(mode="after")
    def _counts(self) -> Self:
        refused = self._refused_of_text() if self.text is not None else self._refused_of_tasks()
        for wrong, text, help in refused:
            if wrong:
                raise QdcError(text, help=help)
        if self.tasks:
            self.likelihoods("llada")
        return self

    def _refused_of_text(self) -> tuple[tuple[bool, str, str], ...]:
        several = f"--report adds the figures of one artifact, and {len(self.models)} are given"
        alone = f"--windows {self.windows} gives no standard error of the difference"
        return (
            (self.report and len(self.models) > 1, several, "evaluate them one by one"),
            (self.seeds < 1, f"--seeds {self.seeds} draws no mask", "--seeds 1 or more"),
            (self.windows < 1, f"--windows {self.windows} leaves no text", "--windows 1 or more"),
            (self.batch < 1, f"--batch {self.batch} runs nothing", "--batch 1 or more"),
            (self.infills < 0, f"--infills {self.infills} is no count", "--infills 0 or more"),
            (self.compared and self.windows < 2, alone, "--windows 2 or more"),
        )

    def _refused_of_tasks(self) -> tuple[tuple[bool, str, str], ...]:
        return tuple(
            (value is not None and value < least, f"--{name} {value} is too small",
             f"leave --{name} out for the task's")
            for name, value, least in (("limit", self.limit, 1), ("shots", self.shots, 0))
        )  # fmt: skip
