"""Where a model is that was asked for by the wrong name, and how it comes to a folder."""

import os
import re
import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path

from qdc.errors import InvalidCheckpoint

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""``organisation/name``, as models are called on the hub."""
SNAPSHOTS = ("snapshots/*", "models--*/snapshots/*", "hub/models--*/snapshots/*")
"""Where models lie, from a folder of the hub's cache on: one model's, all models', the root."""
FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt")
"""What a compile reads of a repository of the hub."""
PICKLED = "pytorch_model*.bin"
"""Weights as they were before safetensors; other .bin files are states of a training."""
CONVERT = (
    "import glob, torch; from safetensors.torch import save_file; "
    "read = lambda path: torch.load(path, map_location='cpu', weights_only=True).items(); "
    "files = sorted(glob.glob({pattern!r})); "
    "found = {{name: value.clone() for path in files for name, value in read(path)}}; "
    "save_file(found, {out!r}, dict(format='pt'))"
)


def no_folder(path: Path) -> InvalidCheckpoint:
    """The error for a model that is no folder: a file, nothing, or a name of the hub."""
    if path.exists():
        what, help = f"{path} is a file, not a model folder", ""
    else:
        what, help = f"{path} is not there", _mistyped(path) or _of_the_hub(str(path))
    default = "give a local folder that holds config.json and *.safetensors"
    return InvalidCheckpoint(what, help=help or default)


def _mistyped(path: Path) -> str:
    """The models that lie beside where this one would, if they are called nearly so."""
    try:
        beside = [each.parent.name for each in path.parent.glob("*/config.json")]
    except OSError:
        return ""
    names = get_close_matches(path.name, beside, cutoff=0.8)
    likely = " or ".join(str(path.parent / name) for name in names)
    return f"did you mean {likely}?" if likely else ""


def _of_the_hub(name: str) -> str:
    """How to get at a model of the hub; nothing if this is none of its names."""
    if not HUB_ID.fullmatch(name):
        return ""
    there = _in_the_cache(name)
    if there:
        return f"the hub's cache on this machine has it: give {there[-1]}"
    folder = name.partition("/")[2]
    patterns = " ".join(f"--include '{pattern}'" for pattern in FILES)
    return (
        f"if it is a model of the hub, fetch it, then give {folder}:\n"
        f"        hf download {name} --local-dir {folder} {patterns}"
    )


def _in_the_cache(name: str) -> list[Path]:
    """Snapshots of a model in the cache of the hub, the newest last."""
    home = os.environ.get("HF_HOME") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "huggingface"
    )
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub"))
    folder = cache / f"models--{name.replace('/', '--')}" / "snapshots"
    found = [path.parent for path in folder.glob("*/config.json")]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def refuse_cache(folder: Path) -> None:
    """Say where the model is, for a folder of the hub's cache that holds it further down.

    Raises:
        InvalidCheckpoint: the folder has no configuration, and folders in it have one.
    """
    if (folder / "config.json").exists():
        return
    patterns = ("*", *SNAPSHOTS) if folder.name == "snapshots" else SNAPSHOTS
    for pattern in patterns:
        places = [str(path.parent) for path in sorted(folder.glob(f"{pattern}/config.json"))]
        if places:
            raise InvalidCheckpoint(
                f"{folder} is a folder of the hub's cache; the model lies in one of its snapshots/",
                where=places,
                help=f"give {places[0]}" if len(places) == 1 else "give one of these",
            )


def how_to_convert(folder: Path, others: Sequence[str]) -> str:
    """What to do about a folder of weights that are no safetensors; ``others`` are its files."""
    if not any(fnmatch(name, PICKLED) for name in others):
        return "qdc reads safetensors only; convert other formats first"
    pattern, out = (str(folder / name) for name in (PICKLED, "model.safetensors"))
    code = CONVERT.format(pattern=pattern, out=out)
    quoted = shlex.quote(code) if set(code) & set('"$`\\!') else f'"{code}"'
    return (
        "qdc reads safetensors only. Look for a revision that has them, or convert (it takes the "
        f"memory of the model twice):\n        python -c {quoted}"
    )
