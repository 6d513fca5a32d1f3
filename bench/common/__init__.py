"""What two or more benchmarks share; nothing here measures anything by itself.

``processes`` starts and bounds them, ``clocks`` times, ``checkpoint`` writes random models and
``shapes`` names the linears of published ones, ``samples`` draws text, ``pipelines`` asks what a
pipeline takes, ``statistics`` ranks, ``files`` keeps results, ``markdown`` and ``style`` show them.
"""
