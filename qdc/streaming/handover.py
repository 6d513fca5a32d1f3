"""Which forms of lowered layers processes send each other, as a plan sees it.

As ``qdc.distributed.forms`` does it: a form is with the process that made it, and goes to those
that read it when they come to that. These are always the first so many: all, those that move
samples, or the one that writes.
"""

from dataclasses import dataclass, field


@dataclass
class Handover:
    """Who has what, and the bytes that have been sent for it."""

    ranks: int
    handed: int = 0
    """Bytes that went from one process to one."""
    spread: int = 0
    """Bytes of what went from one process to several, each form counted once."""
    delivered: int = 0
    """Bytes that came in, over all processes."""
    _holders: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By node: the maker, and how many of the first processes have the form, too."""

    def made(self, name: str, owner: int) -> None:
        """A form of a node is new: its maker alone has it."""
        self._holders[name] = owner, 0

    def read(self, name: str, nbytes: int, readers: int) -> None:
        """The first so many processes read the form of a node, which is of so many bytes."""
        owner, before = self._holders[name]
        if readers <= before:
            return
        to = readers - before - (before <= owner < readers)
        self._holders[name] = owner, readers
        self.delivered += to * nbytes
        if owner >= readers and 1 < to < self.ranks - 1:  # by way of one that reads it
            self.handed += nbytes
            to -= 1
        if to == 1:
            self.handed += nbytes
        elif to:
            self.spread += nbytes
