"""Exact nearest neighbours among millions of vectors, in bounded memory and with the same result everywhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

RESERVE = 16
"""Candidates kept beyond k in the first pass; see :func:`top_k`."""


@dataclass
class Work:
    """What a search did, for tests and benchmarks.

    Attributes:
        largest_block: most scores held at a time, in numbers (of 4 bytes).
        second_looks: queries with more near-ties than the first pass keeps, which were gone through once more.
    """

    largest_block: int = 0
    second_looks: int = 0


def top_k(
    queries: torch.Tensor,
    support: torch.Tensor,
    k: int,
    *,
    block: tuple[int, int] = (1024, 16384),
    device: str | torch.device | None = None,
    work: Work | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k vectors of largest dot product with each query; equal products are ranked by index.

    The result does not depend on ``block``, on the other queries, or on the hardware, although float32 sums do: a first pass in
    float32 by blocks keeps k + 16 candidates a query; those that rounding could have put on the wrong side are then compared in
    float64, summed in one fixed order. Where more candidates than were kept are within rounding of the k-th, the query is gone
    through once more. The matrix of all products is never held: memory is that of one block, whatever the sizes.

    Args:
        queries: [q, d] of any floating dtype; 16-bit vectors are taken as the numbers they hold.
        support: [n, d]; may lie on another device than the queries.
        k: neighbours wanted; at most n.
        block: queries and support vectors compared at a time.
        device: where the first pass runs; default: where the support is.
        work: filled in with what was done.

    Returns:
        Products [q, k] (float64, descending) and indices [q, k] (int64), on the CPU.

    Raises:
        ValueError: shapes or k do not fit, or a vector is not finite.
    """
    if queries.ndim != 2 or support.ndim != 2 or queries.shape[1] != support.shape[1]:
        raise ValueError(
            f"queries [q, d] and support [n, d] are expected, not {list(queries.shape)}, {list(support.shape)}"
        )
    if not 0 <= k <= len(support):
        raise ValueError(f"k={k}: must be 0 to {len(support)}, the number of support vectors")
    work = work if work is not None else Work()
    device = torch.device(device) if device is not None else support.device
    scores = torch.empty(len(queries), k, dtype=torch.float64)
    indices = torch.empty(len(queries), k, dtype=torch.int64)
    if k == 0 or len(queries) == 0:
        return scores, indices
    largest = _largest_norm(support, block[1])
    bar = tqdm(
        total=len(queries), desc="nearest neighbours", unit="query", leave=False, disable=_silent(queries, support)
    )
    for start in range(0, len(queries), block[0]):
        some = queries[start : start + block[0]]
        found = _search(some, support, k, block[1], device, largest, work)
        scores[start : start + len(some)], indices[start : start + len(some)] = found
        bar.update(len(some))
    bar.close()
    return scores, indices


def _search(
    queries: torch.Tensor,
    support: torch.Tensor,
    k: int,
    block: int,
    device: torch.device,
    largest: float,
    work: Work,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`top_k` of one block of queries."""
    kept = min(k + RESERVE, len(support))
    on_device = queries.to(device, torch.float32)
    norms = torch.linalg.vector_norm(on_device, dim=1).double().cpu()
    if not bool(torch.isfinite(norms).all()):
        raise ValueError("a query vector is not finite")
    # |computed - true| <= d u |x||y| / (1 - d u) with u = 2^-24, in whatever order the d products are summed.
    slack = norms * largest * (1.01 * queries.shape[1] * 2.0**-24)
    with _FullFloat32():
        coarse, places = _first_pass(on_device, support, kept, block, device, work)
        coarse, places = coarse.cpu().double(), places.cpu()
        # A vector among the true k nearest scores at least (k-th computed score - 2 slack) here.
        bound = coarse[:, k - 1] - 2 * slack
        complete = (coarse[:, -1] < bound) | (kept == len(support))
        scores, indices = _rank_exactly(queries, support, places, k)
        for row in torch.nonzero(~complete).flatten().tolist():
            work.second_looks += 1
            near = _above(on_device[row], support, float(bound[row]), block, device)
            scores[row : row + 1], indices[row : row + 1] = _rank_exactly(
                queries[row : row + 1], support, near[None], k
            )
    return scores, indices


def _first_pass(
    queries: torch.Tensor, support: torch.Tensor, kept: int, block: int, device: torch.device, work: Work
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``kept`` largest float32 products of each query, descending, and where they are."""
    best: torch.Tensor | None = None
    places: torch.Tensor | None = None
    for start in range(0, len(support), block):
        part = support[start : start + block].to(device, torch.float32)
        products = queries @ part.T
        work.largest_block = max(work.largest_block, products.numel())
        values, at = products.topk(min(kept, products.shape[1]), dim=1)
        at += start
        if best is None or places is None:
            best, places = values, at
        else:
            values, at = torch.cat([best, values], 1), torch.cat([places, at], 1)
            best, order = values.topk(min(kept, values.shape[1]), dim=1)
            places = at.gather(1, order)
    assert best is not None
    assert places is not None
    return best, places


def _above(query: torch.Tensor, support: torch.Tensor, bound: float, block: int, device: torch.device) -> torch.Tensor:
    """All places whose float32 product with one query reaches a bound."""
    found = []
    for start in range(0, len(support), block):
        products = support[start : start + block].to(device, torch.float32) @ query
        found.append(torch.nonzero(products.double() >= bound).flatten().cpu() + start)
    return torch.cat(found)


def _rank_exactly(
    queries: torch.Tensor, support: torch.Tensor, places: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best of some candidates [q, c], by float64 products summed in one order, then by index."""
    width = queries.shape[1]
    rows = max(1, 2**22 // max(1, width * places.shape[1]))
    columns = max(1, 2**22 // width)
    products = np.empty(tuple(places.shape))
    for top in range(0, len(queries), rows):
        some = queries[top : top + rows].cpu().double().numpy()
        for left in range(0, places.shape[1], columns):
            at = places[top : top + rows, left : left + columns]
            vectors = support[at.to(support.device)].cpu().double().numpy()
            # NumPy sums each row by itself, pairwise; a matrix product would sum in an order that depends on the shapes.
            products[top : top + rows, left : left + columns] = (vectors * some[:, None, :]).sum(axis=2)
    where = places.numpy()
    order = np.lexsort((where, -products), axis=1)[:, :k]
    return (
        torch.from_numpy(np.take_along_axis(products, order, 1)),
        torch.from_numpy(np.take_along_axis(where, order, 1)),
    )


def _largest_norm(vectors: torch.Tensor, block: int) -> float:
    largest = 0.0
    for start in range(0, len(vectors), block):
        norm = torch.linalg.vector_norm(vectors[start : start + block].float(), dim=1).max().item()
        if not np.isfinite(norm):
            raise ValueError("a support vector is not finite")
        largest = max(largest, norm)
    return largest


class _FullFloat32:
    """Float32 products of full precision: the bound above does not hold for TF32 or bfloat16 short cuts."""

    def __enter__(self) -> None:
        self._held = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")

    def __exit__(self, *_: object) -> None:
        torch.set_float32_matmul_precision(self._held)


def _silent(queries: torch.Tensor, support: torch.Tensor) -> bool | None:
    return len(queries) * len(support) < 10**9 or None
