"""The folder of a comparison: one file a result, and what is made of all of them.

``results`` holds a file a job, named by its digest, which may be used by any later comparison in
the same folder; ``compare.json`` and ``compare.html`` are of the last one.
"""

from pathlib import Path

from qdc.comparing.table import CompareResult
from qdc.disk import replace_bytes, unwritable
from qdc.errors import OutputExists

RESULTS, DATA, PAGE = "results", "compare.json", "compare.html"
HELP = "choose another --out"


def open_folder(out: Path) -> None:
    """Make the folder, or go on in one of an earlier comparison.

    Raises:
        OutputExists: something else is there.
        QdcError: it cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise OutputExists(f"{out} is there and is no folder", help=HELP)
    if out.is_dir() and not (out / RESULTS).is_dir() and any(out.iterdir()):
        raise OutputExists(f"{out} holds files that are not of a comparison", help=HELP)
    try:
        (out / RESULTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(out, error, HELP) from error


def write_outcome(compared: CompareResult, out: Path) -> None:
    """Write data and page. Raises ``QdcError`` if the disk does not take them."""
    from qdc.comparing.page import render

    replace_bytes(out / PAGE, render(compared).encode(), HELP)
    replace_bytes(out / DATA, f"{compared.model_dump_json(indent=1)}\n".encode(), HELP)
