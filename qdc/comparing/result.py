"""What one job found, as a JSON file."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from qdc.format.codec import BitsWord


class Record(BaseModel):
    """Frozen data that a JSON file can hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Losses(Record):
    """Cross-entropy of tokens, window by window, summed over masks and tokens, in nats."""

    ratio: float | None
    """Share of the tokens that are masked; None for the next token of a causal model."""
    tokens: tuple[int, ...]
    losses: tuple[float, ...]
    agreed: tuple[float, ...] = ()
    """Tokens whose most probable value is the original's; of one ratio of a candidate alone."""
    divergences: tuple[float, ...] = ()
    """Kullback-Leibler divergences from the original's predictions, where ``agreed`` is there."""


class Drift(Record):
    """How far a model is from the original on held-out states at mask ratio 0.5."""

    layers: dict[str, float]
    """Each linear's relative squared output error on the original model's inputs."""
    regions: tuple[float, ...]
    """The same of the residual stream behind each block, at masked positions, each model running
    on its own."""
    divergence: float
    """Kullback-Leibler divergence from the original's predictions of masked tokens, in nats."""
    unseen: tuple[str, ...] = ()
    """Layers that no input of these windows came to, or that are no module: they have no error."""


class Cost(Record):
    """What the quantization alone took; memory is that of its whole process."""

    seconds: float
    processor_seconds: float
    peak_bytes: int
    threads: int
    load: tuple[float, float, float]
    """The machine's load average at the start."""


class Layer(Record):
    """One quantized linear, as the compile reports it."""

    kind: str
    error: float | None
    """Relative output error on the calibration states of the quantized stream."""
    orders: tuple[int, ...] = ()


class Result(Record):
    """One job's figures."""

    digest: str
    name: str
    """Of the case that was run first under this digest."""
    seed: int | None
    what: str
    """Pipeline with every option, or library with its options."""
    version: str
    created: str
    environment: dict[str, str]
    cost: Cost
    sign_bits: float
    """Bits of signs or codes a quantized weight; ``bits_word`` says which."""
    effective_bits: float
    file_bytes: int | None
    """All tensor data of the artifact; None for a library, which has none of ours."""
    layers: dict[str, Layer]
    passes: dict[str, float]
    """Seconds of each pass."""
    bits_word: BitsWord = "code bits"
    owners: tuple[int, ...] = ()
    """The document of each window; empty if windows stand for themselves."""
    candidate: tuple[Losses, ...] = ()
    original: tuple[Losses, ...] = ()
    drift: Drift | None = None
    notes: tuple[str, ...] = ()


def read(path: Path) -> Result | None:
    """Read a result; None if it is missing or not one that this version wrote."""
    try:
        return Result.model_validate_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError, ValidationError):
        return None
