"""How one rank's failure ends all of them, with its error shown once."""

from qdc.errors import InvalidGraph, QdcError

FINE, MISTAKE, BUG = b"\0", b"\1", b"\2"
FAILED = (MISTAKE, BUG)


class FailedElsewhere(QdcError):
    """Another rank has failed and shows why; this one ends without a word."""

    code = "QDC501"

    def __init__(self, rank: int, status: bytes) -> None:
        """``status`` is how it failed: ``MISTAKE`` or ``BUG``."""
        super().__init__(f"the compile has failed on rank {rank}, which says why")
        self.rank = rank
        self.exit_code = 2 if status == BUG else 1


class LostRank(QdcError):
    """Another process has gone, and nobody knows why."""

    code = "QDC502"


def status_of(error: BaseException) -> bytes:
    """Whether an error is a mistake in the input or a bug."""
    outside = isinstance(error, QdcError) and not isinstance(error, InvalidGraph)
    return MISTAKE if outside or isinstance(error, OSError) else BUG
