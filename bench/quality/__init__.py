"""The quality benchmark: every method on the embedded model, and the paper's ablations.

    python -m bench.quality --list
    python -m bench.quality --jobs 2 --seeds 0,1,2 --tag $(git rev-parse --short HEAD)
    python -m bench.quality --page --seeds 0,1,2 --tag ...

Each method and calibration seed is a job in a process of its own, whose result is one JSON file in
``bench/out/quality``; what is there already is not computed again. The page ``docs/quality.md`` and
its plots are written from these files alone.

It is a user of ``qdc.comparing``, which runs jobs, measures and computes. ``cases`` and
``ablations`` say what is measured, ``jobs`` turns a case into work, ``worker`` does that of
libraries, ``targets`` judges, ``tables``, ``plots``, ``panels`` and ``page`` show.
"""
