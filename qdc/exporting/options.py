"""What an export may be asked for: the options of ``qdc.export`` and of ``qdc export``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Required, Self, TypedDict, get_args

from pydantic import BeforeValidator, model_validator

from qdc.errors import QdcError, UnknownName
from qdc.options import Options, PathLike, option, switch
from qdc.runtime.options import Plugins

Format = Literal["dense", "gguf", "compressed-tensors"]
Dtype = Literal["bf16", "f16", "f32", "q8_0"]
DTYPES: dict[Format, tuple[Dtype, ...]] = {
    "dense": ("bf16", "f16", "f32"),
    "gguf": ("f16", "q8_0"),
    "compressed-tensors": ("bf16", "f16", "f32"),
}
"""What each format takes, its default first."""


def _one_of(what: str, known: tuple[str, ...]) -> BeforeValidator:
    def check(given: Any) -> Any:
        if given is not None and given not in known:
            text = f"no {what} is called {given!r}"
            raise UnknownName(text, help=f"known: {', '.join(known)}")
        return given

    return BeforeValidator(check)


class ExportOptions(Options):
    """Everything that a user says of an export."""

    refusal: ClassVar[str] = "an export cannot be asked for that"
    manual: ClassVar[str] = "qdc export --help names the options"
    positional: ClassVar[tuple[str, ...]] = ("artifact",)

    artifact: Annotated[Path, option("ARTIFACT", "Folder that qdc compile wrote", argument=True)]
    out: Annotated[
        Path,
        option(
            "OUT",
            "Folder to write; with --format gguf the file",
            "-o",
            "--out",
            more="It appears there when it is complete",
        ),
    ]
    format: Annotated[
        Format,
        _one_of("format", get_args(Format)),
        option(
            "NAME",
            "dense: an ordinary checkpoint; gguf: for llama.cpp; compressed-tensors: packed "
            "integers for vLLM and SGLang",
            more="dense: every weight is decoded, under the key names of the checkpoint. gguf: "
            "blocks of ggml are copied as they are, every other weight is decoded. "
            "compressed-tensors: uniform grids of the blocks stay integers (compile with --passes "
            "engine), every other weight is decoded",
        ),
    ] = "dense"
    dtype: Annotated[
        Dtype | None,
        _one_of("dtype", get_args(Dtype)),
        option(
            "NAME",
            "Of decoded tensors: bf16, f16, f32; with gguf f16, q8_0",
            more="The first that the format has, if not given; with compressed-tensors the first "
            "that holds every scale",
        ),
    ] = None
    pre_tokenizer: Annotated[
        str | None,
        option(
            "NAME",
            "llama.cpp's name of how a text is split",
            more="With gguf; read off the tokenizer if not given",
        ),
    ] = None
    verify: Annotated[
        bool,
        switch(
            "Prove that tensors and logits are the artifact's",
            more="Its weights rounded to dtype, before the folder appears; takes one dense copy of "
            "the model in fp32. compressed-tensors: what the library of that name decodes, each "
            "weight",
        ),
    ] = False
    force: Annotated[bool, switch("Replace an artifact or an export at OUT")] = False
    plugins: Plugins = ()
    digests: Annotated[
        bool,
        switch(
            "Whether the artifact's files must have the digests that it was written with",
            "--no-verify",
            help="Take the artifact's files as they are",
        ),
    ] = True

    @property
    def decoded(self) -> Dtype:
        """The dtype of decoded tensors."""
        return self.dtype or DTYPES[self.format][0]

    @model_validator(mode="after")
    def _format_takes_it(self) -> Self:
        if self.decoded not in DTYPES[self.format]:
            raise QdcError(
                f"--format {self.format} has no dtype {self.dtype}",
                help=f"it has {', '.join(DTYPES[self.format])}",
            )
        if self.pre_tokenizer is not None and self.format != "gguf":
            raise QdcError("--pre-tokenizer is read with --format gguf alone")
        return self

    @model_validator(mode="after")
    def _proof_of_what(self) -> Self:
        if self.verify and not self.digests:
            raise QdcError(
                "a proof of files that are not verified proves nothing",
                help="give one of --verify and --no-verify",
            )
        return self


class ExportKeywords(TypedDict, total=False):
    """What type checkers and editors know of the keywords of ``qdc.export``."""

    out: Required[PathLike]
    format: str
    dtype: str | None
    pre_tokenizer: str | None
    verify: bool
    digests: bool
    force: bool
    plugins: PathLike | Sequence[PathLike]
