"""A calibration stream of ``qdc plan``: what it holds at each place, what each move would take."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from qdc.ir.graph import Stage
from qdc.ir.routing import ROUTED
from qdc.streaming.account import STATES, WAITING, Account
from qdc.streaming.stream import Stream
from qdc.streaming.work import FP32, Work, bytes_of, node_work

MASK = 1 + FP32
"""Bytes of a mask of attention for each pair of positions: as it is made, and as it is added."""
DERIVATIVES = 24 << 20
"""Bytes that the first derivatives leave in the process, code of libraries and what they set up: 19
MB after distill and 25 after guide on the embedded model, without tensors; torch 2.13.0."""


class StreamForecast(Stream):
    """A stream that goes the same way with no batch of its own; what moves take is charged."""

    def __init__(
        self,
        account: Account,
        key: tuple[int, bool],
        charge: Callable[[int, Work], None],
        samples: int,
        length: int,
        batch: int,
        *,
        segmented: bool = False,
        split: bool = False,
    ) -> None:
        """Stand before the first region.

        Args:
            account: what all forecasts of the compile add up.
            key: place of the pass, and whether the stream goes through the original model, where
                nothing is decoded.
            charge: takes the bytes of a move for a moment, and its work.
            samples: rows of token ids.
            length: tokens of a row.
            batch: rows computed at once.
            segmented: whether attention gets a mask.
            split: whether each process moves a part of the batches, or all of them.
        """
        self.segmented, self.divided = segmented, split
        self.account, self.key, self.charge = account, key, charge
        tokens = torch.empty(samples, length, dtype=torch.int64, device="meta")
        # Of all batches the size of the first counts; nothing is computed, and no weight is read.
        super().__init__(
            account.program,
            [tokens[:batch], tokens[batch:]],
            lambda name: {},
            tokens.device,
            returns=account.returns,
            part=slice(0),
            decoded=account.memory,
        )
        self.stopped()

    @property
    def masked(self) -> Tensor:
        """Any places; computing with tensors of no numbers would import torch's compiler."""
        return torch.empty(self.tokens.shape, dtype=torch.bool, device=self.tokens.device)

    @property
    def data(self) -> Tensor:
        """Any places too."""
        return self.masked

    def tokens_of(self, stage: Stage) -> float:
        """Tokens of all samples that a stage reads: of an expert those routed to it, on average."""
        routed = self.graph[stage.value].type.shape[:1] == (ROUTED,)
        return self.tokens.numel() * (self.share if routed else 1)

    def kept_bytes(self) -> int:
        """Bytes of all samples that are held, the entrance of the region included."""
        places = {(self.boundary, name) for name in self.names}
        if self.returns:
            boundary, names, *_ = self._entrance
            places |= {(boundary, name) for name in names}
        sizes, held = self.dimensions(*self.tokens.shape), self.account.held
        whole = sum(bytes_of(self.graph[name].type, sizes, held) for _, name in places)
        return int(whole * self.account.share(self._count))

    @property
    def _count(self) -> int:
        return -(-len(self.tokens) // self.sizes["B"])

    def enter(self, stage: Stage) -> None:
        """Go to a stage, forwards or back; its region's weights are held from then on."""
        self.account.load(self.graph[stage.layers[0]])
        super().enter(stage)

    def stopped(self) -> None:
        """Hold the bytes of what waits here."""
        place, original = self.key
        self.account.ledger.hold(f"{STATES}{place}:{original}", WAITING, self.kept_bytes())

    def move(self, steps: list[str], keep: frozenset[str]) -> None:
        """Charge what executing these nodes for all samples would take."""
        self.charge(*self._cost(steps, keep))
        if not self.key[1]:
            ranks = self.account.ranks
            self.account.read(min(ranks, self._count) if self.divided else ranks, steps)

    def cost(self, wanted: Collection[str]) -> tuple[int, Work]:
        """What ``compute`` would take for all samples; nothing moves or is charged.

        Returns:
            Most bytes of values and decoded parameters at a time, on the device; and the work.
        """
        return self._cost(self.order.steps(wanted, self.names), wanted)

    def way_back(self, wanted: Collection[str]) -> tuple[int, Work]:
        """As ``cost``, with derivatives: the way back needs all values, and makes as many again.

        Returns:
            Most bytes on the device; and the work of one way forwards.
        """
        self.account.ledger.hold("what derivatives set up", "process", DERIVATIVES)
        nbytes, work = self.cost(wanted)
        steps = self.order.steps(wanted, self.names)
        return nbytes + sum(bytes_of(self.graph[n].type, self.sizes, FP32) for n in steps), work

    def given(self, wanted: Collection[str]) -> int:
        """Bytes on the device while a batch that ``compute`` gave is looked at.

        They are those of the values, and of the parameters, which wait for the next batch.
        """
        steps = self.order.steps(wanted, self.names)
        values = (bytes_of(self.graph[name].type, self.sizes, FP32) for name in wanted)
        return self._ready(steps) + sum(values)

    def _cost(self, steps: list[str], wanted: Collection[str]) -> tuple[int, Work]:
        """Walk through the steps as the executor does, values dropped after their last reader."""
        edges, graph = self.order.edges, self.graph
        last = {read: step for step in steps for read in edges.predecessors(step)}
        live = {name: bytes_of(graph[name].type, self.sizes, FP32) for name in self.names}
        highest, work = sum(live.values()), Work()
        for name in steps:
            work += node_work(graph, name, self.sizes)
            live[name] = bytes_of(graph[name].type, self.sizes, FP32)
            highest = max(highest, sum(live.values()))
            for read in edges.predecessors(name):
                if last[read] == name and read not in wanted:
                    live.pop(read, None)
        ready = self._ready(steps)
        if self.segmented and any(graph[name].op == "attention" for name in steps):
            ready += MASK * self.sizes["B"] * self.sizes["L"] ** 2
        made = max(map(self._decoding, steps), default=0)
        return ready + max(highest, made), work.times(len(self.tokens) / self.sizes["B"])

    def _ready(self, steps: list[str]) -> int:
        """Bytes of the parameters of these nodes that are held at a time."""
        graph = self.graph
        parameters = [sum(FP32 * p.elements({}) for p in graph[name].parameters) for name in steps]
        ready = sum(parameters)
        return max(parameters) if self.decoded is not None and ready > self.decoded else ready

    def _decoding(self, name: str) -> int:
        """Bytes beside the fp32 parameters while a node's parameters are made ready."""
        node, codec = self.graph[name], self.account.codecs.get(name)
        if codec is None or self.key[1]:
            return 0
        dense = FP32 * node.rows * node.columns
        return dense + (codec.nbytes + codec.working_bytes if name in self.account.packed else 0)
