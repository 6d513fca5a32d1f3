"""Loss against effective bits: our curve, and every library's points at 1.25 to 3.5 bits.

    python -m bench.curve --model MODEL --out DIR --list
    python -m bench.curve --model MODEL --out DIR --peers-python .venv-peers/bin/python --page

One run has the same calibration samples, held-out windows and masks for all: a user of
``qdc.comparing``, as ``bench.quality`` is, whose jobs are kept by digest. ``cases`` says what is
measured, ``jobs`` makes work of it, ``judgement`` holds each point of others against our curve,
``promises`` says what is asked of ours; ``tables``, ``drawing`` and ``page`` show it.
"""
