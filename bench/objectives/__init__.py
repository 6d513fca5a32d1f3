"""Why layer error and cross-entropy part ways, and which calibration objective to optimise.

    python -m bench.objectives --model examples/tiny-llada --cache bench/out/objectives \
        --peer autoround=bench/out/autoround/seed0 --out docs/quality

Compiles a population of quantized versions (seed 0), measures candidate objectives on each and the
rise of the loss on held-out text, correlates the two, and takes the rise apart by experiments. What
is in the cache is not done again. Writes figures, tables and plots for ``objectives.md``.
"""
