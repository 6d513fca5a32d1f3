"""The tensor table: large tensors by name, beside the graph and never in it."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from qdc.disk import write_tensors
from qdc.errors import InvalidGraph
from qdc.ir.types import SHORT, TensorRef, short_dtype

LONG = {short: long for long, short in SHORT.items()}


def torch_dtype(short: str) -> torch.dtype:
    """``bf16`` ``-> torch.bfloat16``. Raises ``KeyError`` for others."""
    found: torch.dtype = getattr(torch, LONG[short])
    return found


def digest(tensor: Tensor) -> str:
    """SHA-256 over the bytes of a tensor, row-major."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()


class TensorTable:
    """Named tensors in memory or spilled to a file; a released name stays known, without data.

    ``in`` answers for every name that was ever put, which is what the verifier asks.
    """

    def __init__(self) -> None:
        """Start without any tensor."""
        self._held: dict[str, Tensor] = {}
        self._spilled: dict[str, Path] = {}
        self._known: dict[str, TensorRef] = {}
        self._homes: dict[str, tuple[TensorRef, int]] = {}
        self._aside: Path | None = None
        self._numbers: dict[str, int] = {}

    def __contains__(self, name: object) -> bool:
        """Whether this name was ever put."""
        return name in self._known

    def put(self, name: str, tensor: Tensor) -> TensorRef:
        """Keep a tensor and return the reference to it, in place of an older one of this name."""
        ref = TensorRef(
            name=name,
            dtype=short_dtype(str(tensor.dtype)),
            shape=tuple(tensor.shape),
            digest=digest(tensor),
        )
        self._spilled.pop(name, None)
        self._held[name], self._known[name] = tensor, ref
        return ref

    def put_aside(self, name: str, tensor: Tensor) -> TensorRef:
        """As ``put``, but into a file of its own at once, where there is a folder for that.

        Raises:
            QdcError: the disk does not take it.
        """
        ref = self.put(name, tensor)
        if self._aside is not None:
            number = self._numbers.setdefault(name, len(self._numbers))
            path = self._aside.with_name(f"{self._aside.stem}_{number:05d}{self._aside.suffix}")
            write_tensors(path, {name: self._held.pop(name)})
            self._spilled[name] = path
        return ref

    def aside(self, path: Path) -> None:
        """Name the files of ``put_aside`` after this one from now on."""
        self._aside = path
        self._numbers.clear()

    def note_home(self, ref: TensorRef, rank: int) -> None:
        """Know a tensor that one process made, which may be this one; others lack its data."""
        if ref.name not in self._held and ref.name not in self._spilled:
            self._known[ref.name] = ref
        if self.home(ref) is None:
            self._homes[ref.name] = ref, rank

    def share(self, ref: TensorRef) -> None:
        """Know that every process has this tensor now."""
        self._homes.pop(ref.name, None)

    def home(self, ref: TensorRef) -> int | None:
        """The process that surely has the data, where not every one has it."""
        noted, rank = self._homes.get(ref.name, (None, None))
        return rank if noted == ref else None

    def get(self, ref: TensorRef) -> Tensor:
        """Return the tensor. Raises ``InvalidGraph`` if it was released or replaced since."""
        if self._known.get(ref.name) != ref:
            raise InvalidGraph(f"tensor {ref.name} is not the one that was noted", where=[ref.name])
        if ref.name in self._held:
            return self._held[ref.name]
        if ref.name in self._spilled:
            with safe_open(self._spilled[ref.name], framework="pt") as file:
                loaded: Tensor = file.get_tensor(ref.name)
            return loaded
        home = self.home(ref)
        if home is not None:
            raise InvalidGraph(
                f"tensor {ref.name} is on rank {home}, which owns its layer",
                where=[ref.name],
                help="inside Unit.share read what belongs to the given layers only; a pass that "
                "reads more leaves reads_all = True",
            )
        raise InvalidGraph(
            f"tensor {ref.name} was released",
            where=[ref.name],
            help="scratch tensors live for one stage or region: keep their passes together",
        )

    def release(self, name: str) -> None:
        """Forget the data of a tensor; its name stays known."""
        self._held.pop(name, None)
        self._spilled.pop(name, None)
        self._homes.pop(name, None)

    def spill(self, path: Path) -> bool:
        """Move everything in memory to one file; returns whether there was anything.

        Raises:
            ValueError: the file is in use already.
            QdcError: the disk does not take it.
        """
        if path in self._spilled.values():
            raise ValueError(f"{path} holds tensors already")
        if not self._held:
            return False
        write_tensors(path, self._held)
        self._spilled.update(dict.fromkeys(self._held, path))
        self._held.clear()
        return True

    def clear(self) -> None:
        """Forget every tensor, those in files and those of other processes too."""
        for table in (self._held, self._spilled, self._known, self._homes):
            table.clear()

    def adopt(self, refs: Iterable[TensorRef], path: Path) -> None:
        """Know tensors that a file holds, in place of older ones of their names."""
        for ref in refs:
            self._held.pop(ref.name, None)
            self._known[ref.name], self._spilled[ref.name] = ref, path

    def know(self, ref: TensorRef) -> None:
        """Know the name of a tensor whose data was released."""
        self._known[ref.name] = ref

    def is_here(self, ref: TensorRef) -> bool:
        """Whether this process has the data of this tensor, not of an older one of its name."""
        there = ref.name in self._held or ref.name in self._spilled
        return there and self._known[ref.name] == ref

    def device_of(self, ref: TensorRef) -> str:
        """The kind of device where the data is, of a tensor that is here: ``cpu`` in a file."""
        held = self._held.get(ref.name)
        return "cpu" if held is None else held.device.type

    def held(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor in memory."""
        yield from self._held.items()
