"""How threads of one calculation wait for each other: asleep, so that others may run meanwhile.

GNU's OpenMP, which torch brings along, lets a thread that waits turn in a loop for milliseconds.
Where other programs use the cores too, it turns on the very core that the thread needs for which it
waits. Compiling the embedded model on two cores with two threads (24 samples, torch 2.13.0, 29
November 2026), ``calibrate-cross`` took 205 s that way at a load of 9 to 14, and 63 s asleep at a
load of 14 to 15; the compile took 51 s of processor time, 28 s asleep, and 25 s with one thread.
"""

import os


def wait_asleep() -> None:
    """Have OpenMP's threads sleep when they wait, unless the environment says how they wait.

    The variable is read once, when torch is loaded.
    """
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
