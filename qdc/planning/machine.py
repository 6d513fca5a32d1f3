"""The machine that a plan is for: this one, which is measured, or one elsewhere, by data sheets."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qdc.planning.cards import find_card
from qdc.planning.rates import Rates, measure
from qdc.runtime.device import find_device, own_memory
from qdc.streaming.memory import free_memory, machine_memory
from qdc.streaming.work import FP32


@dataclass(frozen=True)
class Machine:
    """What it has, and how fast it is."""

    device: str
    """As ``--device`` names it."""
    title: str
    """In a sentence: ``this cpu``, ``an H100 SXM``."""
    rates: Rates
    measured: bool
    """Whether the rates are of this machine; else peaks of a data sheet."""
    memory: int | None
    """Bytes of the host; None where nobody knows."""
    free_memory: int | None
    """Of them, those that no other program has now."""
    device_memory: int | None
    """Bytes of the device's own memory; None where it has none."""
    disk: int | None
    """Bytes that are free where the command runs; None elsewhere."""
    ranks: int = 1
    """Processes that share a compile, each with such a device."""

    @classmethod
    def here(cls, device: str) -> "Machine":
        """This machine. Raises ``QdcError`` for a device that is not there."""
        where = torch.device(find_device(device))
        return cls(
            device=str(where),
            title=f"this {where}",
            rates=measure(where),
            measured=True,
            memory=machine_memory(),
            free_memory=free_memory(),
            device_memory=own_memory(where),
            disk=shutil.disk_usage(Path.cwd()).free,
        )

    @classmethod
    def elsewhere(cls, gpu: str) -> "Machine":
        """A machine with such a card. Raises ``UnknownName`` with the nearest names."""
        card = find_card(gpu)
        return cls(
            device="cuda",
            title=f"a card {card.title}",
            rates=card.rates,
            measured=False,
            memory=None,
            free_memory=None,
            device_memory=card.memory,
            disk=None,
        )

    def asked(self, ranks: int, rates: tuple[float, float, float] | None) -> "Machine":
        """The same with so many processes, and with other rates where some are given.

        Args:
            ranks: processes.
            rates: operations a second in fp32 and in fp64, and bytes a second of the memory.
        """
        found = replace(self, ranks=ranks)
        if rates is None:
            return found
        products, exact, memory = rates
        given = Rates(products, exact, memory / FP32)
        title = f"{self.title} at the given rates"
        return replace(found, rates=given, measured=False, title=title)

    @property
    def shared(self) -> bool:
        """Whether the device computes in the host's memory."""
        return torch.device(self.device).type == "cpu"
