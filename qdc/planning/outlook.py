"""What ``qdc plan`` finds: plain data, ready for a table or for JSON."""

from pydantic import Field

from qdc.frontend.coverage import Covered
from qdc.ir.calibration_use import SampledStates
from qdc.ir.text_use import TextUse
from qdc.ir.types import Frozen
from qdc.streaming.ledger import Peak


class LayerKind(Frozen):
    """Layers of one place in all regions."""

    kind: str
    layers: int
    rows: int
    columns: int
    codec: str | None
    """None where the pass that lowers them does not say."""
    nbytes: int | None
    """Stored, of all of them."""


class RegionKind(Frozen):
    """Regions that are alike."""

    first: str
    regions: int
    stages: tuple[tuple[str, ...], ...]
    """Layers of each stage, by their names inside the region, wave by wave."""
    waves: tuple[int, ...] = ()
    """Stages of each wave: those that are calibrated and lowered together."""
    weights: int
    """To be quantized, of one region."""


class ShardSize(Frozen):
    """One file with tensors."""

    name: str
    tensor_bytes: int
    file_bytes: int


class BesideSize(Frozen):
    """One file without tensors, or the one file of a backend that writes no folder."""

    name: str
    nbytes: int


class Choice(Frozen):
    """Other options for the same compile, and what it would take with them."""

    options: str
    fits: bool
    host_bytes: int
    device_bytes: int | None
    disk_bytes: int
    seconds: float


class Verdict(Frozen):
    """Whether the compile fits the machine, and what else would."""

    fits: bool
    """As far as is known; what the machine has of None was not judged."""
    lacking: tuple[str, ...]
    """What there is too little of: memory, device memory, disk."""
    memory: int | None
    """Bytes that the host has."""
    free_memory: int | None
    """Of them, those that are free now."""
    device_memory: int | None
    """Bytes that the device has of its own."""
    free_disk: int | None
    """Bytes where the command ran."""
    choices: tuple[Choice, ...] = ()
    """Where it does not fit, or takes more than a day; all of these fit."""


class RuntimeMemory(Frozen):
    """What running takes with one runtime, on a CPU."""

    backend: str
    process_bytes: int
    """Of a process without a model."""
    parts: dict[str, int]
    """What it holds beside that while a forward runs."""
    loading_bytes: int
    """Most that it holds beside that while the model is loaded."""

    @property
    def running_bytes(self) -> int:
        """All of it, in a forward."""
        return self.process_bytes + sum(self.parts.values())

    @property
    def peak_bytes(self) -> int:
        """Most bytes at a time, from the start on."""
        return max(self.running_bytes, self.process_bytes + self.loading_bytes)

    def as_data(self) -> dict[str, object]:
        """Everything, with the derived figures."""
        derived = {"running_bytes": self.running_bytes, "peak_bytes": self.peak_bytes}
        return {**self.model_dump(mode="json"), **derived}


class PassCost(Frozen):
    """Arithmetic of one pass over all its units."""

    name: str
    products: float
    """Floating-point operations of fp32 products."""
    exact: float
    """The same in fp64."""
    elements: float
    """Numbers read or written elementwise."""
    gain: float = 1
    """How many times faster the slowest of several processes is done with its part."""
    seconds: float
    """An estimate, from the speed of three kinds of arithmetic on this machine."""


class Outlook(Frozen):
    """A compile, foreseen."""

    family: str
    effort: str
    """What the effort chose, and what was given."""
    pipeline: str
    backend: str
    device: str
    assumed: str = ""
    """What had to be assumed about the checkpoint, a line each."""
    coverage: tuple[Covered, ...]
    regions: tuple[RegionKind, ...]
    kinds: tuple[LayerKind, ...]
    layers: int
    weights: int
    """To be quantized, inside the regions."""
    blocks: int
    """Of so many columns as the orders or groups have, over all layers; of 128 without any."""
    bytes_before: int
    shards: tuple[ShardSize, ...]
    """Empty where the backend or a pass does not say what it stores."""
    beside: tuple[BesideSize, ...] = ()
    """Files without tensors; the IR dump is near to its size, the others have theirs."""
    uncounted: tuple[str, ...] = ()
    """Files that could not be counted, in words."""
    fewer: int = 0
    """Bytes by which the shards may be smaller, where orders are not known beforehand."""
    more: int = 0
    """Bytes by which they may be larger."""
    host: Peak
    device_memory: Peak | None = None
    """None where the device has no memory of its own."""
    process_bytes: int
    """Resident memory of this process, with which a compile starts too; part of the host's peak."""
    scratch_bytes: int
    """In temporary files at a time, beside the artifact."""
    samples: int
    length: int
    calibration_text: tuple[TextUse, ...] = ()
    """What the samples will be made of; empty where no tokenizer or no text is there."""
    calibration_states: tuple[SampledStates, ...] = ()
    """What states will be taken of the model's own trajectories; empty unless ``geometry=tmas``."""
    forwards: float
    """Linears executed for calibration, as a share of each quantized layer and sample."""
    passes: tuple[PassCost, ...]
    ranks: int = 1
    """Processes that share the compile; memory is that of the first."""
    sent_bytes: int = 0
    """What they deliver to each other, by arithmetic."""
    sent_seconds: float = 0
    """What that takes at an assumed rate."""
    unknown: tuple[str, ...] = ()
    """Passes that do not say what they do: memory, time and perhaps sizes are without them."""
    warnings: tuple[str, ...] = ()
    tokens: int = 0
    """Of the forward of the compiled model that ``running`` is of."""
    running: tuple[RuntimeMemory, ...] = ()
    """What running the compiled model takes, with each runtime that says so."""
    machine: str = ""
    """The machine that time is of, in words."""
    measured: bool = True
    """Whether the rates behind it were measured; else they are peaks of a data sheet."""
    verdict: Verdict | None = None
    schema_version: int = Field(default=1)

    @property
    def tensor_bytes(self) -> int:
        """Tensor data of the artifact."""
        return sum(shard.tensor_bytes for shard in self.shards)

    @property
    def file_bytes(self) -> int:
        """Files with tensors."""
        return sum(shard.file_bytes for shard in self.shards)

    @property
    def written_bytes(self) -> int:
        """All files that are counted."""
        return self.file_bytes + sum(file.nbytes for file in self.beside)

    @property
    def disk_bytes(self) -> int:
        """Most bytes on the disk at a time, what waits there for a while included."""
        return self.written_bytes + self.more + self.scratch_bytes

    @property
    def seconds(self) -> float:
        """Of all passes, an estimate."""
        return sum(cost.seconds for cost in self.passes) + self.sent_seconds

    @property
    def flops(self) -> float:
        """Floating-point operations of products, and one for each number touched elementwise."""
        return sum(cost.products + cost.exact + cost.elements for cost in self.passes)

    def as_data(self) -> dict[str, object]:
        """Everything, with the derived figures, ready for JSON."""
        return {
            "tensor_bytes": self.tensor_bytes,
            "file_bytes": self.file_bytes,
            "written_bytes": self.written_bytes,
            "disk_bytes": self.disk_bytes,
            "seconds": self.seconds,
            "flops": self.flops,
            **self.model_dump(mode="json"),
            "running": [runtime.as_data() for runtime in self.running],
        }
