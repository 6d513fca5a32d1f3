"""The machine that a plan is for: this one, which is measured, or one elsewhere, by data sheets."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from qdc.planning.cards import find_card
from qdc.planning.rates import Rates, measure
from qdc.runtime.device import find_device, own_memory
from qdc.streaming.memory import free_memory, machine_memory


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

    @property
    def shared(self) -> bool:
        """Whether the device computes in the host's memory."""
        return torch.device(self.device).type == "cpu"
