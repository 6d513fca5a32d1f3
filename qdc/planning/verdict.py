"""Whether a compile fits a machine, how long it takes there, and what to choose if it does not."""

from collections.abc import Iterator
from typing import Any

from qdc.errors import QdcError
from qdc.pipeline.registry import Registry
from qdc.planning.effort import EFFORTS
from qdc.planning.forecast import forecast
from qdc.planning.headers import Headers
from qdc.planning.machine import Machine
from qdc.planning.options import PlanOptions
from qdc.planning.outlook import Choice, Outlook, Verdict
from qdc.streaming.account import WAITING

LONG = 24 * 3600
"""Seconds from which on something shorter is offered."""
MOST = 3
"""Choices that are offered."""
SPARE = 0.9
"""Share of the memory that a choice may take: the system wants some too."""
STEP = 1 << 28
"""Bytes to which ``--host-memory`` is rounded down."""


def judged(
    options: PlanOptions,
    registry: Registry,
    machine: Machine,
    outlook: Outlook,
    headers: Headers | None = None,
) -> Outlook:
    """The outlook with a verdict on it, and with choices where it does not fit or takes days.

    Args:
        options: what the outlook is of.
        registry: knows passes, backends and model families.
        machine: where it would run.
        outlook: without a verdict.
        headers: that it was made of; opened again, once for all choices, if not given.
    """
    lacking = list(_lacking(outlook, machine))
    choices: list[Choice] = []
    headers = headers or Headers(options.model_dir, registry.families)
    if lacking or outlook.seconds > LONG:
        for words, changes in _candidates(options, outlook, machine):
            found = _tried(options, registry, machine, words, changes, headers)
            better = found is not None and (
                found.seconds < LONG or found.seconds < outlook.seconds / 2 or bool(lacking)
            )
            if found is not None and found.fits and better:
                choices.append(found)
            if len(choices) == MOST:
                break
    verdict = Verdict(
        fits=not lacking,
        lacking=tuple(lacking),
        memory=machine.memory,
        free_memory=machine.free_memory,
        device_memory=machine.device_memory,
        free_disk=machine.disk,
        choices=tuple(choices),
    )
    return outlook.model_copy(update={"verdict": verdict})


def _lacking(outlook: Outlook, machine: Machine) -> Iterator[str]:
    """What the machine has too little of; what nobody knows is not judged."""
    device = outlook.device_memory.nbytes if outlook.device_memory is not None else 0
    for name, needed, there in (
        ("memory", outlook.host.nbytes, machine.memory),
        ("device memory", device, machine.device_memory),
        ("disk", outlook.disk_bytes, machine.disk),
    ):
        if there is not None and needed > there:
            yield name


def _candidates(
    options: PlanOptions, outlook: Outlook, machine: Machine
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Options that might do, nearest to what was asked for first."""
    states = outlook.host.parts.get(WAITING, 0)
    if machine.memory is not None and outlook.host.nbytes > machine.memory and states:
        left = int(machine.memory * SPARE) - (outlook.host.nbytes - states)
        if left >= STEP:
            limit = left // STEP * STEP
            yield f"--host-memory {limit >> 20}M", {"host_memory": limit}
    low = EFFORTS["low"]
    sizes = [(low.samples, low.length), (8, 256)]
    if options.effort != "low" and not options.settled:
        yield "--effort low", {"effort": "low"}
        sizes = sizes[1:]
    if outlook.samples:
        for samples, length in sizes:
            shorter = min(length or outlook.length, outlook.length)
            if (samples is not None and samples < outlook.samples) or shorter < outlook.length:
                words = f"--samples {samples} --length {shorter}"
                yield words, {"effort": "normal", "samples": samples, "length": shorter}
    if outlook.samples:
        nothing = {"samples": None, "length": None, "pack": None, "isolate": None}
        changes = {"passes": "data-free", "effort": "normal", "calibration": None, **nothing}
        yield "--passes data-free (more loss: nothing is calibrated)", changes


def _tried(
    options: PlanOptions,
    registry: Registry,
    machine: Machine,
    words: str,
    changes: dict[str, Any],
    headers: Headers,
) -> Choice | None:
    """The figures of other options; None where they cannot be."""
    other = options.model_copy(update=changes)
    try:
        found = forecast(other, registry, machine, text=False, headers=headers)
    except QdcError:
        return None
    device = found.device_memory
    return Choice(
        options=words,
        fits=not any(_lacking(found, machine)),
        host_bytes=found.host.nbytes,
        device_bytes=None if device is None else device.nbytes,
        disk_bytes=found.disk_bytes,
        seconds=found.seconds,
    )
