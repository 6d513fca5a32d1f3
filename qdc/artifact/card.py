"""The card of an artifact, ``README.md``: what it is, of what it was made, how it is loaded.

It is for people, who may go on writing in it: no digest covers it, and nothing reads it but the
evaluation, which writes its figures between two marks. All of it follows from inputs and options.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdc.artifact.digests import CARD
from qdc.checkpoint.elsewhere import HUB_ID
from qdc.checkpoint.folder import Checkpoint
from qdc.disk import replace_bytes
from qdc.errors import printable
from qdc.modelfiles import read_inside
from qdc.units import size

BEGIN, END = "<!-- written by qdc eval -->", "<!-- end of what qdc eval has written -->"
UNKNOWN = "Not evaluated. `qdc eval FOLDER --text HELD --against MODEL --report` writes it here."
LARGEST = 1 << 20
FRONT = re.compile(r"\A---\r?\n(.*?)\r?\n---", re.DOTALL)
LICENCE = re.compile(
    r"^(license|license_name|license_link): *[\"']?([\w.+:/ -]{1,200}?)[\"']? *$", re.M
)
"""Fields of the head of a card on the hub that say under which licence a model is."""
USE = """## Use

```
qdc run FOLDER "for i in <mask>(10):"     # fill the gaps of a text
qdc generate FOLDER "def read(path):"     # write on
qdc chat FOLDER                           # talk, where the model has a chat template
qdc serve FOLDER                          # OpenAI's protocol, and a page
qdc verify FOLDER                         # have bits flipped since?
```

```python
import qdc

model = qdc.load("FOLDER")  # forward(input_ids) -> logits
```

FOLDER is this one. `import qdc.hf` lets `transformers` load it too."""


@dataclass(frozen=True)
class Figures:
    """What the card says of the compile."""

    layers: int
    weights: int
    bits_word: str
    bits: float
    """Of codes or signs, a weight."""
    effective_bits: float
    """Every stored bit, a weight."""
    whole_bits: float | None
    """The same with embedding and head; None where they are not quantized."""
    bytes_before: int
    """Tensor files of the checkpoint."""
    tensor_bytes: int
    """Tensors of the artifact."""
    rotated: int
    """Layers that read rotated inputs."""


def card_text(checkpoint: Checkpoint, facts: Mapping[str, Any], figures: Figures) -> bytes:
    """Write the card of an artifact.

    Args:
        checkpoint: what was compiled; its own card is asked for the licence.
        facts: what the artifact's configuration says of its origin.
        figures: bits and bytes.
    """
    licence, base = _licence(checkpoint.folder), _base(checkpoint.config)
    head = [
        "library_name: qdc",
        *([f"base_model: {base}", "base_model_relation: quantized"] if base else []),
        *(f"{name}: {value}" for name, value in licence.items()),
        "tags: [diffusion-language-model, quantized, qdc]",
    ]
    whole = figures.whole_bits
    vocabulary = "" if whole is None else f", {whole:.4f} with embedding and head"
    named = ", ".join(map(str, checkpoint.config.get("architectures") or ())) or "a torch module"
    origin = f"`{base}`" if base else f"{_code(named)}; its configuration names no model of the hub"
    calibration = facts.get("calibration")
    rows = {
        "base model": origin,
        "its digest": f"`sha256:{facts['checkpoint_sha256']}`",
        "licence of the base model": _said(licence),
        "pipeline": _code(facts["pipeline"]),
        "calibrated on": "nothing"
        if not calibration
        else f"{_code(calibration['name'])} `sha256:{calibration['sha256']}`",
        "quantized": f"{figures.layers} layers, {figures.weights:,} weights",
        "bits a weight": f"{figures.bits:.6g} {figures.bits_word}, "
        f"{figures.effective_bits:.4f} with every stored byte counted{vocabulary}",
        **({"rotated": f"inputs of {figures.rotated} layers"} if figures.rotated else {}),
        "tensors": f"{size(figures.bytes_before)} before, {size(figures.tensor_bytes)} now",
        "written by": f"qdc {facts['qdc_version']}, backend {_code(facts['backend'])}",
    }
    title = base.rpartition("/")[2] if base else str(checkpoint.config.get("model_type", "A model"))
    lines = [
        "---", *head, "---", "",
        f"# {title}, compiled to {figures.bits:.3g} bits", "",
        "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), "",
        USE, "", "## Loss", "",
        BEGIN, UNKNOWN, END, "",
    ]  # fmt: skip
    return "\n".join(lines).encode("utf-8", "backslashreplace")


def note_loss(folder: Path, lines: Sequence[str]) -> bool:
    """Put the figures of an evaluation into the card of an artifact, in place of earlier ones.

    Returns:
        Whether it was done: without a card, or where its owner took the marks out, nothing is.

    Raises:
        QdcError: the file system refuses.
    """
    path = folder / CARD
    try:
        text = read_inside(path, LARGEST).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    before, begins, rest = text.partition(BEGIN)
    _, ends, after = rest.partition(END)
    if not begins or not ends:
        return False
    new = "\n".join([before + BEGIN, *lines, END + after])
    replace_bytes(path, new.encode())
    return True


def _base(config: Mapping[str, Any]) -> str:
    """The name on the hub that a configuration gives for its model; empty without one."""
    name = config.get("_name_or_path")
    return name if isinstance(name, str) and HUB_ID.fullmatch(name) else ""


def _licence(folder: Path) -> dict[str, str]:
    """What the base model's own card says of its licence, by the fields of the hub."""
    try:
        text = read_inside(folder / CARD, LARGEST).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    front = FRONT.match(text)
    return dict(LICENCE.findall(front[1])) if front else {}


def _said(licence: Mapping[str, str]) -> str:
    if not licence:
        return "not known: its folder has no card that says it, and its terms hold for this too"
    return ", ".join(licence.values())


def _code(text: object) -> str:
    """A text of others, as code in a cell of a table."""
    safe = printable(str(text)).replace("\n", " ").replace("`", "'").replace("|", "\\|")
    return f"`{safe}`"
