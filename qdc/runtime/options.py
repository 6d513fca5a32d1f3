"""Options of whatever runs here: on which device, by which backend, with which plugins."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from qdc.options import Options, as_paths, option, switch
from qdc.text.options import AroundTexts

Device = Annotated[str, option("NAME", "cpu | cuda | auto", more="auto is CUDA where it is there")]
Plugins = Annotated[
    tuple[Path, ...],
    BeforeValidator(as_paths),
    option(
        "FILE", "Python file: passes, backends, families, strategies", "--plugin", repeated=True
    ),
]
AUTO = "auto"
"""Whoever runs fastest where the model is; ``qdc.runtime.auto`` says who."""
RunBackend = Annotated[
    str,
    option(
        "NAME",
        "Runtime: auto | cpu | triton | reference",
        more="auto computes from packed weights on a CPU, and decodes them all on a GPU",
    ),
]
Verify = Annotated[
    bool,
    switch(
        "Whether files of an artifact must have the digests that it was written with",
        "--no-verify",
        help="Take an artifact's files as they are",
    ),
]


class RunOptions(Options):
    """How a model is run."""

    device: Device = "cpu"
    backend: RunBackend = AUTO
    document_tokens: AroundTexts = "auto"
    plugins: Plugins = ()
    verify: Verify = True
