"""What a compile did, as data: the summary table, ``--json``, the page and tests read this."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from pydantic import Field, ValidationError

from qdc.errors import QdcError
from qdc.evaluation.evaluate import Comparison, Evaluation
from qdc.format.codec import BitsWord
from qdc.frontend.coverage import Covered
from qdc.ir.calibration_use import SampledStates, TokenCertainty
from qdc.ir.distilled import Distilled
from qdc.ir.text_use import TextUse
from qdc.ir.types import Frozen
from qdc.jsontext import model_of
from qdc.units import size

SCHEMA = 1
DERIVED = ("bits_word", "sign_bits", "effective_bits", "whole_bits", "error_by_kind")


class LayerReport(Frozen):
    """One quantized layer."""

    name: str
    kind: str
    """The name without its number: layers of one kind play the same part in every region."""
    rows: int = Field(gt=0)
    columns: int = Field(gt=0)
    codec: str
    orders: tuple[int, ...] = ()
    bits_word: BitsWord = "code bits"
    """What the payload is called. A report of before this was noted says code bits of signs too."""
    payload_bits: int
    nbytes: int
    """Stored bytes: signs or codes, scales, tags, padding, and a bias that a pass has added."""
    error: float | None
    """Relative output error on the calibration states."""
    block_errors: tuple[float, ...] = ()
    """Share of each block of columns in the error; they add up to it."""
    stored: dict[str, int] = Field(default_factory=dict)
    """Bytes of each stored tensor, by its suffix."""
    rotated: bool = False
    """Whether it reads rotated inputs."""
    routed: int | None = None
    """Tokens that an expert saw, if they were too few and it was given the statistics of all."""

    @property
    def weights(self) -> int:
        """Rows times columns."""
        return self.rows * self.columns

    @property
    def sign_bits(self) -> float:
        """Bits of signs or codes a weight, without padding; ``bits_word`` says which."""
        return self.payload_bits / self.weights

    @property
    def effective_bits(self) -> float:
        """Every stored bit a weight."""
        return 8 * self.nbytes / self.weights


class PassReport(Frozen):
    """Options and cost of one pass over all its units."""

    name: str
    seconds: float
    peak_bytes: int
    units: int
    options: dict[str, str] = Field(default_factory=dict)
    """Every option as pipeline text, also where it has its default."""
    changed: tuple[str, ...] = ()
    """Names of the options that differ from their defaults."""


class SizePart(Frozen):
    """One use of the artifact's tensor bytes."""

    name: str
    nbytes: int


class FileReport(Frozen):
    """One file of the artifact."""

    name: str
    nbytes: int


class EvaluationReport(Frozen):
    """Held-out figures that ``qdc eval --report`` added."""

    text: str
    """Name and digest of the held-out text."""
    seeds: int
    against: str | None
    """Folder of the model that it was compared with."""
    result: Comparison | Evaluation


class CompileReport(Frozen):
    """The result of ``qdc.compile``."""

    schema_version: int = SCHEMA
    out: str | None
    """Folder of the artifact; None if the pipeline stopped before one."""
    report: str | None = None
    """The page; None if none was written."""
    created: str = ""
    """Date and time, UTC."""
    family: str
    effort: str = ""
    """What ``--effort`` chose, and what was given; empty in reports of before there was one."""
    pipeline: str
    full_pipeline: str = ""
    """The pipeline with every option written out; pasteable."""
    backend: str
    device: str
    environment: dict[str, str] = Field(default_factory=dict)
    """Versions, threads and machine: what may change the last digit of a figure."""
    checkpoint: str = ""
    """Folder of the checkpoint."""
    unused_fields: str = ""
    """Fields of its config.json that nothing here knows, in words; empty if there is none."""
    assumed_fields: str = ""
    """What it leaves to published code, and was taken from there; empty if there is nothing."""
    checkpoint_sha256: str = ""
    calibration: str | None
    """Name and digest of the text."""
    calibration_left_out: str = ""
    """Records of the text that hold nothing, in words; empty if there is none."""
    calibration_form: str = ""
    """A document of the text between special tokens, as ``[CLS] text [SEP]``; empty without."""
    special_tokens_left_out: str = ""
    """Those that the tokenizer would put around a document, in words; empty if none are."""
    calibration_text: tuple[TextUse, ...] = ()
    """What the samples were made of; several where passes draw otherwise."""
    calibration_states: tuple[SampledStates, ...] = ()
    """What states were taken of the model's own trajectories; empty unless ``geometry=tmas``."""
    calibration_certainty: tuple[TokenCertainty, ...] = ()
    """What confidence tokens were weighed by; empty where all count the same."""
    artifact_sha256: str = ""
    """Digest of the artifact's files other than shards; its dump names every tensor's digest."""
    plugins: tuple[str, ...]
    layers: tuple[LayerReport, ...]
    """Quantized layers of the repeated blocks: what the bits of the method count."""
    outside: tuple[LayerReport, ...] = ()
    """Quantized matrices outside of them: embedding and output head."""
    distilled: Distilled | None = None
    """What tuning towards the original's predictions has gained; None without a distill pass."""
    coverage: tuple[Covered, ...]
    passes: tuple[PassReport, ...]
    remarks: tuple[str, ...]
    bytes_before: int
    """All tensor files of the checkpoint."""
    bytes_after: int
    """All files of the artifact."""
    tensor_bytes: int
    """Tensor data of the artifact, as written."""
    decoded: int = 0
    """Quantized matrices of which the artifact holds weights in full, not codes."""
    predicted_bytes: int = 0
    """The same, computed from shapes and dtypes alone."""
    parts: tuple[SizePart, ...] = ()
    """What the predicted bytes are."""
    files: tuple[FileReport, ...] = ()
    peak_bytes: int = 0
    """Highest memory of the run: of the CUDA device, else resident memory of the process."""
    layer_forwards: float
    """Linears executed for calibration, divided by samples times quantized linears."""
    processes: int = 1
    """That shared the work; times and memory are those of the first."""
    sent_bytes: int = 0
    """Bytes that they had to deliver to each other."""
    seconds: float
    resumed: int = 0
    """How many times the compile was interrupted; its times and remarks are those of all parts."""
    dumps: tuple[str, ...] = ()
    evaluation: EvaluationReport | None = None

    @property
    def bits_word(self) -> BitsWord:
        """``sign bits`` if every layer of the repeated blocks is stored as signs alone."""
        signs = all(layer.bits_word == "sign bits" for layer in self.layers)
        return "sign bits" if signs else "code bits"

    @property
    def sign_bits(self) -> Fraction:
        """Bits of signs or codes a quantized weight of the repeated blocks, exact."""
        weights = sum(layer.weights for layer in self.layers)
        return Fraction(sum(layer.payload_bits for layer in self.layers), max(1, weights))

    @property
    def effective_bits(self) -> float:
        """Every stored bit a quantized weight of the repeated blocks."""
        weights = sum(layer.weights for layer in self.layers)
        return 8 * sum(layer.nbytes for layer in self.layers) / max(1, weights)

    @property
    def counted(self) -> str:
        """What the effective bits count."""
        if not self.decoded:
            return "every byte counted"
        return f"as packed: of {self.decoded} matrices the file holds weights in full"

    @property
    def whole_bits(self) -> float | None:
        """The same with embedding and output head; None where they are not quantized."""
        if not self.outside:
            return None
        every = (*self.layers, *self.outside)
        return 8 * sum(row.nbytes for row in every) / sum(row.weights for row in every)

    def __str__(self) -> str:
        """What came out, in a few lines; the fields and ``repr`` have everything."""
        lines = [f"{self.family} compiled to {self.out}" if self.out else f"{self.family} compiled"]
        if self.layers:
            weights = sum(layer.weights for layer in self.layers)
            known = f", {self.counted}" if self.decoded else ""
            lines.append(
                f"{len(self.layers)} layers, {weights:,} weights: {float(self.sign_bits):.6g} "
                f"{self.bits_word} a weight, {self.effective_bits:.4f} effective{known}"
            )
            errors = "   ".join(f"{kind} {e:.4f}" for kind, e in self.error_by_kind().items())
            lines.append(f"output error  {errors or 'not measured'}")
        if self.out:
            lines.append(f"{size(self.bytes_before)} before, {size(self.bytes_after)} after")
        lines.append(f"{self.seconds:.1f} s on {self.device}, at most {size(self.peak_bytes)}")
        lines += [f"pipeline  {self.pipeline}", *([f"report  {self.report}"] * bool(self.report))]
        return "\n".join(lines)

    def error_by_kind(self) -> dict[str, float]:
        """Mean relative output error of the layers of each kind, where it was measured."""
        found: dict[str, list[float]] = {}
        for layer in self.layers:
            if layer.error is not None:
                found.setdefault(layer.kind, []).append(layer.error)
        return {kind: sum(errors) / len(errors) for kind, errors in found.items()}

    def as_data(self) -> dict[str, object]:
        """Everything, with the derived figures, ready for JSON."""
        bits = self.sign_bits
        return {
            "bits_word": self.bits_word,
            "sign_bits": {"exact": str(bits), "value": float(bits)},
            "effective_bits": self.effective_bits,
            "whole_bits": self.whole_bits,
            "error_by_kind": self.error_by_kind(),
            **self.model_dump(mode="json"),
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any], where: str) -> "CompileReport":
        """Read what ``as_data`` gave. Raises ``QdcError`` that names ``where``."""
        version = data.get("schema_version")
        if version != SCHEMA:
            raise QdcError(
                f"the report has schema version {version!r}, this qdc reads {SCHEMA}",
                where=[where],
                help="compile again, or use the qdc that wrote it",
            )
        try:
            return model_of(cls, {k: v for k, v in data.items() if k not in DERIVED})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise QdcError(
                f"the report is damaged: {place}: {first['msg']}",
                where=[where],
                help="compile again",
            ) from error
