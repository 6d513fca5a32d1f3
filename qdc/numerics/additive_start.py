"""The first codebooks: k-means over the vectors, then over what each codebook leaves.

``weights`` measures distances between weights, as AQLM (arXiv 2401.06118) does. The others measure
what they do to the layer's outputs, each vector by a matrix of its own: ``outputs`` by its block of
the moment, all else unchanged (the idea of OA-EM, arXiv 2604.08118), ``conditional`` by what the
other columns cannot compensate. Both forms are ours. Source: related-systems.md 8, 18, A5.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from qdc.numerics.additive import (
    Additive,
    Problem,
    diagonal_blocks,
    entries,
    sums_by_code,
)

Start = Literal["weights", "outputs", "conditional"]
DISTANCES = 1 << 24
"""Distances that are held at a time."""
RIDGE = 1e-6
"""Share of its mean diagonal that is added to an entry's metric, which may be singular."""


def start_additive(
    problem: Problem,
    codebooks: int,
    count: int,
    group: int,
    *,
    metric: Tensor | None = None,
    iterations: int = 100,
    points: int = 1024,
    seed: int = 0,
) -> Additive:
    """Fit scales to row norms, then one codebook after the other to the residual vectors.

    Args:
        problem: Padded to ``group``.
        codebooks: M.
        count: K, entries of a codebook, at most the vectors of the layer.
        group: g, columns of a vector.
        metric: f32[G, g, g], positive definite, of the distances of each vector, in which rows
            count by the square of their scale; None for plain distances of the scaled vectors.
        iterations: Most rounds of k-means for each codebook; it ends early once nothing moves.
        points: Most vectors for each entry that k-means looks at; a random choice of rows' vectors
            beyond that. All vectors get codes.
        seed: Of the first centres.

    Returns:
        Codes of the nearest entries; scales and codebooks rounded to fp16.

    Raises:
        OverflowError: A row norm does not fit fp16.
    """
    rows = problem.target.shape[0]
    scale = problem.target.norm(dim=1).half().float()
    if not bool(scale.isfinite().all()):
        raise OverflowError("a row's norm is not finite in fp16")
    unit = problem.target / torch.where(scale > 0, scale, 1.0)[:, None]
    vectors = unit.reshape(rows, -1, group).transpose(0, 1).contiguous()  # [G, n, g]
    weight = torch.ones_like(scale)
    if metric is None:
        identity = torch.eye(group, device=vectors.device)
        metric = identity.expand(len(vectors), group, group)
    elif bool((scale > 0).any()):
        weight = scale.square() / scale.square().mean()
    generator = torch.Generator().manual_seed(seed)
    tables, codes = [], []
    for _ in range(codebooks):
        seen = max(1, min(rows, points * count // len(vectors)))
        chosen = torch.randperm(rows, generator=generator)[:seen].sort().values.to(vectors.device)
        table = _k_means(vectors[:, chosen], metric, weight[chosen], count, iterations, generator)
        table = table.half().float()
        nearest = nearest_entries(vectors, metric, table)
        vectors = vectors - entries(table, nearest)
        tables.append(table)
        codes.append(nearest.T)
    return Additive(torch.stack(codes, dim=1).contiguous(), torch.stack(tables), scale)


def distance_metric(
    start: Start, moment: Tensor, upper: Tensor | None, group: int
) -> Tensor | None:
    """The matrices that distances are measured by, ``f32[G, g, g]`` of mean 1; None for weights.

    Args:
        start: Which.
        moment: f32[G * g, G * g], padded.
        upper: f32[m, m], factor of the damped inverse moment; ``conditional`` alone reads it.
        group: g.
    """
    if start == "weights":
        return None
    if start == "outputs":
        found = diagonal_blocks(moment, group)
    else:
        assert upper is not None
        wide = pad(upper.to(torch.float64), (0, -len(upper) % group))
        parts = wide.reshape(len(upper), -1, group).transpose(0, 1)
        inverse = parts.mT @ parts
        # What pads the last vector is 0 in all weights: any metric of its own will do.
        empty = inverse.diagonal(dim1=1, dim2=2) == 0
        found = torch.linalg.inv(inverse + torch.diag_embed(empty.to(torch.float64))).float()
    size = found.diagonal(dim1=1, dim2=2).mean()
    return found / size if bool(size > 0) else found


def nearest_entries(vectors: Tensor, metric: Tensor, table: Tensor) -> Tensor:
    """The entry at the least distance (v - c) A_j (v - c)^T of each vector.

    Args:
        vectors: f32[G, n, g].
        metric: f32[G, g, g], A_j.
        table: f32[K, g].

    Returns:
        i64[G, n].
    """
    sizes = ((table @ metric) * table).sum(-1)  # [G, K]
    pulled = vectors @ metric
    step = max(1, DISTANCES // (vectors.shape[1] * len(table)))
    found = [
        torch.baddbmm(
            sizes[at : at + step, None], pulled[at : at + step],
            table.T.expand(len(pulled[at : at + step]), -1, -1), alpha=-2,
        ).argmin(-1)
        for at in range(0, len(vectors), step)
    ]  # fmt: skip
    return torch.cat(found)


def _k_means(
    vectors: Tensor,
    metric: Tensor,
    weight: Tensor,
    count: int,
    iterations: int,
    generator: torch.Generator,
) -> Tensor:
    """Centres of the vectors f32[G, n, g], each row weighted, from different random vectors.

    A centre that no vector is nearest to stays where it is.
    """
    flat = vectors.reshape(-1, vectors.shape[-1])
    first = torch.randperm(len(flat), generator=generator)[:count].sort().values
    table = flat[first.to(flat.device)]
    if len(table) < count:
        table = pad(table, (0, 0, 0, count - len(table)))
    pulled = (vectors @ metric) * weight[:, None]
    codes: Tensor | None = None
    for _ in range(iterations):
        found = nearest_entries(vectors, metric, table)
        if codes is not None and torch.equal(found, codes):
            break
        codes = found
        table = _centres(table, sums_by_code(pulled, codes, count), codes, metric, weight)
    return table


def _centres(
    table: Tensor, pulled: Tensor, codes: Tensor, metric: Tensor, weight: Tensor
) -> Tensor:
    """Weighted means of the vectors of each entry in their metrics; f32[K, g]."""
    sizes = entry_metrics(codes, metric, weight, len(table))
    used = sizes.diagonal(dim1=1, dim2=2).sum(1) > 0
    ridged = with_ridge(sizes)
    # From where the entry is: what the metric does not see stays, and a ridge moves nothing.
    gap = pulled - (sizes @ table[..., None])[..., 0]
    moved = table + torch.linalg.solve(ridged, gap)
    return torch.where(used[:, None], moved, table)


def entry_metrics(codes: Tensor, metric: Tensor, weight: Tensor, count: int) -> Tensor:
    """What an entry's error costs, summed over the vectors that have it.

    Args:
        codes: i64[G, n].
        metric: f32[G, g, g].
        weight: f32[n], of the rows.
        count: K.

    Returns:
        f32[K, g, g].
    """
    groups = len(codes)
    place = codes + count * torch.arange(groups, device=codes.device)[:, None]
    shares = sums_by_code(weight.expand_as(codes)[..., None], place, groups * count)
    return torch.einsum("jk,jab->kab", shares.reshape(groups, count), metric)


def with_ridge(metric: Tensor) -> Tensor:
    """Make f32[K, g, g] positive definite, where it is nowhere negative; 0 becomes 1."""
    mean = metric.diagonal(dim1=1, dim2=2).mean(1)
    ridge = torch.where(mean > 0, RIDGE * mean, 1.0)
    return metric + torch.diag_embed(ridge[:, None].expand(-1, metric.shape[-1]))
