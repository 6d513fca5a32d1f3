"""Where calibration states wait between two stages: in host memory, and in files above a budget.

All streams of a compile share one store, so that the budget holds for them together. A value comes
back as it went in, bit for bit, from memory or from disk. A file is deleted as soon as nothing
refers to its values any more, so the disk holds no more than what the budget leaves over.
"""

import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qdc.disk import unwritable, write_tensors
from qdc.errors import QdcError

NO_ROOM = "free space there, or raise --host-memory"


class Held(Mapping[str, Tensor]):
    """The values of one batch by name, on the CPU; read from their file where they are spilled."""

    def __init__(self, values: Mapping[str, Tensor], path: Path | None) -> None:
        """``path`` is the file that holds them, None if they stay in memory."""
        self.nbytes = sum(value.nbytes for value in values.values())
        self.path = path
        self._names = tuple(values)
        self._values = dict(values) if path is None else {}

    def __getitem__(self, name: str) -> Tensor:
        """One value. Raises ``QdcError`` if its file was taken away."""
        if self.path is None:
            return self._values[name]
        if name not in self._names:
            raise KeyError(name)
        try:
            with safe_open(self.path, framework="pt") as file:
                # Copied out of the mapping: products then see memory that torch has aligned, and
                # nothing of the file stays resident.
                found: Tensor = file.get_tensor(name).clone()
                return found
        except (OSError, SafetensorError) as error:
            raise QdcError(
                f"spilled states cannot be read back: {str(error).lower()}", where=[str(self.path)]
            ) from error

    def __iter__(self) -> Iterator[str]:
        """Names of the values."""
        return iter(self._names)

    def __len__(self) -> int:
        """Number of values."""
        return len(self._names)


class StateStore:
    """Takes values in and hands them out, batch by batch; counts the bytes of all."""

    def __init__(
        self,
        dtype: torch.dtype = torch.float32,
        memory: int | None = None,
        folder: Path | None = None,
    ) -> None:
        """Start empty.

        Args:
            dtype: floating dtype of the values as they wait.
            memory: bytes that may wait in host memory; None is no limit.
            folder: where files go; whoever made it removes it. Without one nothing is spilled.
        """
        self.dtype, self.memory, self.folder = dtype, memory, folder
        self.in_memory = 0
        """Bytes that wait in host memory."""
        self.on_disk = 0
        """Bytes that wait in files."""
        self._files = 0

    def hold(self, values: Mapping[str, Tensor]) -> Held:
        """Take the values of one batch: floats in ``dtype``, token ids as they are.

        Raises:
            QdcError: the disk does not take what is above the budget.
        """
        ready = {name: self._narrow(value) for name, value in values.items()}
        nbytes = sum(value.nbytes for value in ready.values())
        held = Held(ready, self._write(ready) if self._is_full(nbytes) else None)
        if held.path is None:
            self.in_memory += nbytes
        else:
            self.on_disk += nbytes
        # What refers to a batch last is a list of a stream or of a pass: no one place could say so.
        weakref.finalize(held, self._forget, nbytes, held.path).atexit = False
        return held

    def _is_full(self, nbytes: int) -> bool:
        if self.memory is None or self.folder is None:
            return False
        return self.in_memory + nbytes > self.memory

    def _narrow(self, value: Tensor) -> Tensor:
        dtype = self.dtype if value.is_floating_point() else value.dtype
        return value.detach().to("cpu", dtype)

    def _write(self, values: Mapping[str, Tensor]) -> Path:
        assert self.folder is not None
        self._files += 1
        path = self.folder / f"{self._files:08d}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.folder, error, NO_ROOM) from error
        write_tensors(path, values, NO_ROOM, sync=False)
        return path

    def _forget(self, nbytes: int, path: Path | None) -> None:
        if path is None:
            self.in_memory -= nbytes
        else:
            self.on_disk -= nbytes
            path.unlink(missing_ok=True)
