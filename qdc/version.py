"""The names and the version of this package, without anything else: every module may ask for it."""

import shlex
import shutil
import sys
from pathlib import Path

__version__ = "0.1.0"

DISTRIBUTION = "qdc-compiler"
"""What ``pip`` calls this package; ``import`` and the shell call it ``qdc``."""


def install(extra: str) -> str:
    """The command that adds an optional part to this environment, whichever ``pip`` is in reach."""
    found, here = shutil.which("pip"), Path(sys.executable)
    same = found is not None and Path(found).absolute().parent == here.absolute().parent
    pip = "pip" if same else f"{shlex.quote(str(here))} -m pip"
    return f"{pip} install '{DISTRIBUTION}[{extra}]'"
