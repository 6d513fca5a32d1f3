"""Cutting a wave into parts whose statistics fit in memory.

What a part holds does not depend on how the wave is cut: samples stand before the whole wave while
its parts are taken. So memory decides how many parts there are, and nothing else.
"""

from qdc.ir.graph import LayerGraph, Stage

SUMS = 16
"""Bytes for each pair of inputs of a stage: moment and cross moment while they grow, in fp64. What
is kept of them, and a factor, in fp32, takes less."""


def statistics_bytes(graph: LayerGraph, stage: Stage) -> int:
    """Bytes of what is held of a stage while it is calibrated."""
    return SUMS * graph[stage.layers[0]].columns ** 2


def cut(
    graph: LayerGraph, wave: tuple[Stage, ...], memory: int | None
) -> tuple[tuple[Stage, ...], ...]:
    """Cut a wave into parts, as even as can be in their order; a part has one stage at least.

    Args:
        graph: of the stages.
        wave: stages that do not hang on each other.
        memory: bytes that the statistics of a part may take; None is no limit.
    """
    if memory is None or len(wave) == 1:
        return (wave,)
    sizes = [statistics_bytes(graph, stage) for stage in wave]
    for count in range(max(1, -(-sum(sizes) // max(1, memory))), len(wave)):
        parts = _even(wave, sizes, count)
        if all(sum(size for _, size in part) <= memory for part in parts):
            return tuple(tuple(stage for stage, _ in part) for part in parts)
    return tuple((stage,) for stage in wave)


def _even(wave: tuple[Stage, ...], sizes: list[int], count: int) -> list[list[tuple[Stage, int]]]:
    """So many parts, each from where its share of all bytes begins."""
    total, before = sum(sizes), 0
    parts: list[list[tuple[Stage, int]]] = [[] for _ in range(count)]
    for stage, size in zip(wave, sizes, strict=True):
        parts[before * count // total].append((stage, size))
        before += size
    return [part for part in parts if part]
