"""The view that a pass gets when it is asked what it would do: the counterpart of a unit.

``Pass.forecast`` walks through the layers as ``run`` would and says, instead of doing it, what is
held, what is in memory for a moment, what is computed, and how layers end up stored. Annotations
are passed on to later passes with the right shapes and zeros for what would be measured.
"""

from dataclasses import dataclass

from qdc.format.codec import Codec
from qdc.ir.annotation import Annotation
from qdc.ir.graph import LINEAR, Node, Stage
from qdc.ir.keys import table_key
from qdc.ir.types import TensorRef
from qdc.pipeline.traversal import Scope
from qdc.streaming.account import SCRATCH, STATES, TABLE, WAITING, Account
from qdc.streaming.apart import require_apart
from qdc.streaming.streamforecast import StreamForecast
from qdc.streaming.work import FP32, Work

NO_DIGEST = "0" * 64
MOST_HOLES = 96 << 20
"""Bytes that the C library's allocator keeps of blocks freed between others, at most; estimated."""


@dataclass(frozen=True)
class Forecast(Scope):
    """What one call of ``Pass.forecast`` is about."""

    _account: Account

    @classmethod
    def of(cls, scope: Scope, account: Account) -> "Forecast":
        """The forecast of a scope, with all that was foreseen before it."""
        return cls(**vars(scope), _account=account)

    @property
    def started(self) -> bool:
        """Whether the pass has a stream already, and so has drawn its samples."""
        return self.place in self._account.drawn

    def annotate(self, node: Node, note: Annotation) -> None:
        """Say that the node will carry such an annotation; later passes find it on the graph."""
        self.graph.annotate(node.name, note)

    def unknown(self) -> None:
        """Say that nobody knows what this pass does to memory and time."""
        self._account.unknown[self.step.name] += 1

    def stored_unknown(self, node: Node) -> None:
        """Say that nobody knows how the layer will be stored."""
        self._account.codecs[node.name] = None

    def codec(self, node: Node) -> Codec | None:
        """How an earlier pass said the node will be stored."""
        return self._account.codecs.get(node.name)

    def lower(self, node: Node, codec: Codec) -> None:
        """The layer will have this codec; its working tensors are held until they are packed."""
        self._account.codecs[node.name] = codec
        self._account.packed.discard(node.name)
        name = TABLE + node.name
        self._account.ledger.hold(name, "lowered layers", codec.working_bytes, "device")
        self._account.made(node, everywhere=self.step.reads_all)

    def pack(self, node: Node) -> None:
        """The stored form takes the place of the working tensors, on the host."""
        codec = self._account.codecs.get(node.name)
        if codec is None:
            return
        self._account.packed.add(node.name)
        self._account.ledger.hold(TABLE + node.name, "packed layers", codec.nbytes)
        self._account.made(node, everywhere=self.step.reads_all)

    def orders_vary(self, fewer: int, more: int) -> None:
        """The layers' codecs are a guess: they may store so many bytes less, or more."""
        self._account.slack.append((fewer, more))

    def put(self, stage: Stage, what: str, *shape: int) -> TensorRef:
        """Hold an f32 tensor of this shape until the stage's scratch tensors are released.

        Of several processes only owners of the stage's layers hold it.

        Returns:
            A reference for annotations; its digest is a placeholder.
        """
        name = SCRATCH + table_key(stage.value, what)
        ref = TensorRef(name=name, dtype="f32", shape=shape, digest=NO_DIGEST)
        account, layers = self._account, [self.graph[layer] for layer in stage.layers]
        nbytes = ref.nbytes if any(map(account.owns, layers)) else 0
        account.ledger.hold(name, "statistics of a stage", nbytes, "device")
        return ref

    def put_aside(self, name: str, *shape: int) -> TensorRef:
        """An f32 tensor of this shape goes to a file of its own; its digest is a placeholder."""
        ref = TensorRef(name=name, dtype="f32", shape=shape, digest=NO_DIGEST)
        self._account.scratch_bytes += ref.nbytes
        return ref

    def holds(self, ref: TensorRef) -> bool:
        """Whether a tensor that ``put`` gave is still held."""
        return ref.name in self._account.ledger

    def held(self, *kinds: str) -> int:
        """Bytes of these kinds, as the summary names them, that are held now."""
        return self._account.ledger.held(*kinds)

    @property
    def held_bytes(self) -> int:
        """Bytes of a calibration state's number as it waits."""
        return self._account.held

    def weight(self, node: Node) -> int:
        """Bytes of the original weight in fp32; its region's weights are held from now on."""
        self._account.load(node)
        return FP32 * node.rows * node.columns

    def work(self, nbytes: int, work: Work | None = None, *, host: bool = False) -> None:
        """Arithmetic, and the bytes that it takes for a moment beside all that is held."""
        account, kind = self._account, f"working set of {self.step.name}"
        account.ledger.work(kind, nbytes, "host" if host else "device")
        account.work[self.place] += work or Work()

    def check_apart(self, *, isolate: bool) -> None:
        """As that of a unit."""
        require_apart(self._account.program, isolate=isolate)

    def stream(
        self,
        samples: int,
        length: int,
        batch: int,
        *,
        original: bool = False,
        segmented: bool = False,
    ) -> StreamForecast:
        """The calibration stream of this pass, started at the first call."""
        key, account = (self.place, original), self._account
        if key not in account.streams:
            account.drawn[self.place] = (samples, length)
            split = self.step.divided == "samples"
            stream = StreamForecast(
                account, key, self.work, samples, length, batch, segmented=segmented, split=split
            )
            account.streams[key] = stream
        return account.streams[key]

    def sweep(
        self,
        samples: int,
        length: int,
        batch: int,
        *,
        times: float = 1,
        segmented: bool = False,
        positions: int = 0,
    ) -> None:
        """Runs of the original model on samples that are thrown away, in front of all streams.

        Args:
            samples: rows of token ids.
            length: tokens of a row.
            batch: rows computed at once.
            times: sweeps through the model.
            segmented: whether attention gets a mask.
            positions: of how many, in one sweep, the output head computes logits.
        """

        def charge(nbytes: int, work: Work) -> None:
            self.work(nbytes, work.times(times))

        key, account = (self.place, True), self._account
        stream = StreamForecast(account, key, charge, samples, length, batch, segmented=segmented)
        for region in self.graph.regions:
            stream.leave(region)
        head = list(self.graph)[-1]
        if head.op == LINEAR:
            stream.enter(Stage(value=head.inputs[0], layers=(head.name,)))
            size = FP32 * head.rows * head.columns
            charge(size, Work(products=2 * positions * head.rows * head.columns))
        account.ledger.release(f"{STATES}{self.place}:{True}")

    def keep_states(self, what: str, numbers: int) -> None:
        """Hold so many numbers on the host, as calibration states are held."""
        name = f"{STATES}{self.place}:{what}"
        self._account.ledger.hold(name, WAITING, numbers * self._account.held)

    def drop_states(self, what: str) -> None:
        """Let go of them before the segment ends."""
        self._account.ledger.release(f"{STATES}{self.place}:{what}")

    def drop_boundaries(self, what: str) -> None:
        """Let go of states that a way back has read: they leave holes between blocks that stay."""
        nbytes = self._account.ledger.release(f"{STATES}{self.place}:{what}")
        holes = min(MOST_HOLES, nbytes)
        self._account.ledger.hold(f"holes:{self.place}", "holes that a way back leaves", holes)
