"""How long a compile may still take: the plan's expectation, corrected by what was measured."""

from collections import defaultdict
from collections.abc import Sequence

Expected = Sequence[tuple[int, float]]
"""Place of the pass, and seconds, of each application in the order of the run."""


def seconds_left(
    expected: Expected, measured: Sequence[float], first: int, running: float
) -> float:
    """Seconds from now to the end.

    Each pass has a factor of its own: what its applications took by what was expected of them. That
    of one more application is drawn towards the factor of the whole run, so that a single one says
    little; a pass that has not run yet has the factor of the whole run, which is 1 at the start.

    Args:
        expected: of all applications.
        measured: seconds of those that this process has finished, one after the other.
        first: number of the first of them; those before were run by an earlier process.
        running: seconds for which the one that runs now has run.
    """
    done = expected[first : first + len(measured)]
    rest = expected[first + len(measured) :]
    took, foreseen, count = (defaultdict[int, float](float) for _ in range(3))
    for (place, seconds), real in zip(done, measured, strict=True):
        took[place] += real
        foreseen[place] += seconds
        count[place] += 1
    whole = sum(took.values()) / sum(foreseen.values()) if sum(foreseen.values()) else 1.0
    left = current = 0.0
    for number, (place, seconds) in enumerate(rest):
        usual = (foreseen[place] + seconds) / (count[place] + 1)
        factor = (took[place] + whole * usual) / (foreseen[place] + usual) if usual else 0.0
        # Where nothing was foreseen, as of a pass that only decides, its own mean stands.
        mean = took[place] / count[place] if count[place] else 0.0
        taken = seconds * factor if seconds else mean
        left += taken
        current = taken if number == 0 else current
    return left - min(running, current)
