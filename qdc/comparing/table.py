"""What a comparison found, as data: the table, ``--json`` and the page read this."""

from pydantic import Field

from qdc.comparing.result import Record
from qdc.evaluation.bootstrap import Interval
from qdc.format.codec import BitsWord
from qdc.ir.text_use import TextUse

SCHEMA = 1


class LossRow(Record):
    """The original's mean loss of a token, in nats."""

    ratio: float | None
    """None for the next token of a causal model."""
    loss: float
    interval: Interval | None
    tokens: int


class RiseRow(Record):
    """How much worse than the original a method predicts at one mask ratio, in nats a token."""

    ratio: float | None
    rise: float
    """Mean over seeds."""
    standard_error: float | None
    """Over documents, of the mean over seeds; None where just one can be resampled."""
    interval: Interval | None
    """95%, documents resampled, of the mean over seeds."""
    deviation: float | None
    """Standard deviation over seeds; None for one seed."""
    by_seed: tuple[float, ...]


class MethodRow(Record):
    """One method, or one variant of it: figures are means over seeds."""

    name: str
    method: str
    settings: dict[str, str]
    """Values of the options that are varied."""
    pipeline: str
    """As it can be given to ``qdc compile``."""
    full_pipeline: str = ""
    """Of the first seed, with every option written out."""
    source: str
    """Where the method is published."""
    nominal_bits: float | None
    """Bits a weight as the publication counts them."""
    error: str = ""
    """Why there are no figures, or why some seeds are lacking."""
    notes: tuple[str, ...] = ()
    seeds: tuple[int | None, ...] = ()
    """Those that were measured; None where nothing is drawn."""
    results: tuple[str, ...] = ()
    """The files of each, in the folder of results."""
    artifacts: tuple[str, ...] = ()
    """Their artifacts, if they are kept."""
    bits_word: BitsWord = "code bits"
    code_bits: float | None = None
    """Of signs or codes alone, as ``bits_word`` says."""
    effective_bits: float | None = None
    """Every stored byte of the quantized layers counted."""
    file_bytes: float | None = None
    """All tensors of the artifact."""
    rises: tuple[RiseRow, ...] = ()
    top1: float | None = None
    """Share of tokens whose most probable value is the original's, at the middle ratio."""
    top1_interval: Interval | None = None
    divergence: float | None = None
    """KL(original || method) of a token's distribution in nats, at the middle ratio."""
    divergence_interval: Interval | None = None
    seconds: float | None = None
    processor_seconds: float | None = None
    peak_bytes: int | None = None
    """The largest over seeds."""
    layer_errors: dict[str, float] = Field(default_factory=dict)
    """Relative squared output error of each layer on held-out states."""
    unseen_layers: tuple[str, ...] = ()
    """Layers without an error: no input came to them, or they are no module."""

    def at(self, ratio: float | None) -> RiseRow | None:
        """The rise at one ratio."""
        return next((row for row in self.rises if row.ratio == ratio), None)


class Variation(Record):
    """What one value of an option changes, all else equal: paired differences, nats a token."""

    option: str
    method: str
    others: dict[str, str]
    """Values of the other options that are varied."""
    base: str
    """The value that is compared with."""
    value: str
    ratio: float | None
    base_rise: float
    rise: float
    difference: float
    """Rise with ``value`` minus rise with ``base``: below 0, ``value`` is better."""
    standard_error: float | None
    interval: Interval | None
    deviation: float | None
    """Over the seeds' own differences; None for one seed."""


class CompareResult(Record):
    """The result of ``qdc.compare``."""

    schema_version: int = SCHEMA
    created: str
    qdc: str
    tag: str
    model: str
    model_sha256: str
    held_out: str
    """Name and digest of the held-out text."""
    held_out_left_out: str
    """Records of it that hold nothing, in words; empty if there is none."""
    held_out_text: TextUse
    calibration: str
    """Name and digest of the calibration text."""
    seeds: tuple[int, ...]
    masks: int
    device: str
    ratio: float | None
    """The ratio at which agreement is measured, and by which rows are sorted."""
    original: tuple[LossRow, ...]
    rows: tuple[MethodRow, ...]
    """Best first; those without figures last."""
    variations: tuple[Variation, ...] = ()

    @property
    def failed(self) -> tuple[MethodRow, ...]:
        """Rows that lack figures, all or some."""
        return tuple(row for row in self.rows if row.error)
