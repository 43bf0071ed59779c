"""TokenCut: one object an image by the normalised cut of the graph of its patches.

Legend: h x w patch grid, N = h w patches, D features (the KEYS of the last block).

    A_ij = 1 where cosine(k_i, k_j) > 0.2, else 1e-5;  (D - A) y = lambda D y, D the row sums of A
    y = the eigenvector of the second smallest lambda;  foreground = the side of mean(y) where |y| is largest

The published code solves the dense generalised problem, O(N^3). With x = D^1/2 y it is the second LARGEST one of
D^-1/2 A D^-1/2, whose largest, sqrt(D), is known; Lanczos steps with that one taken out need products with A only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import eigh
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor
from torch.nn import functional as F

from dino_tower.errors import ConfigError
from dino_tower.eval.boxes import box_around, component_at

DENSE_BELOW = 64  # patches: too few for Lanczos to pay


class Cut(NamedTuple):
    """The discovered object."""

    box: Tensor  # [4] pixels
    mask: Tensor  # [h, w] bool: the connected part of the foreground that holds the seed
    seed: int  # the patch with the largest |y|, row-major
    eigenvector: Tensor  # [h, w] float64, positive on the object's side
    foreground: Tensor  # [h, w] bool, all parts


def tokencut(
    keys: Tensor, patch: int, size: tuple[int, int], tau: float = 0.2, epsilon: float = 1e-5, weighted: bool = False
) -> Cut:
    """Find one object (Wang et al. 2022, `object_discovery.ncut`): keys [h, w, D], any scale.

    patch: its pixels; size: (height, width) of the image before padding. weighted: edges keep their cosine where it is
    tau or more (the paper's ablation).
    """
    if keys.ndim != 3 or keys.shape[0] * keys.shape[1] < 2:
        raise ConfigError(f"TokenCut: keys of shape {tuple(keys.shape)}; need [h, w, D] with two patches or more")
    grid = keys.shape[:2]
    rows = F.normalize(keys.flatten(0, 1).float(), dim=1)
    if not bool(rows.isfinite().all()):
        raise ConfigError("TokenCut: some keys are not finite")
    likeness = (rows @ rows.T).cpu()
    edges = torch.where(likeness < tau, 0.0, likeness) if weighted else likeness > tau
    vector = second_eigenvector(edges.double().numpy(), epsilon)
    seed = int(np.abs(vector).argmax())
    foreground = vector > vector.mean()
    if not foreground[seed]:
        vector, foreground = -vector, ~foreground
    side = torch.from_numpy(foreground).reshape(grid)
    own = component_at(side, seed)
    return Cut(box_around(own, patch, size), own, seed, torch.from_numpy(vector).reshape(grid), side)


def second_eigenvector(edges: np.ndarray, epsilon: float) -> np.ndarray:
    """y of the second smallest lambda of (D - A) y = lambda D y, with y^T D y = 1: edges [N, N] -> [N].

    edges: symmetric, >= 0; A = edges, and epsilon where an edge is 0. Its sign is arbitrary.
    """
    affinity = np.where(edges == 0, epsilon, edges)
    degree = affinity.sum(1)
    root = np.sqrt(degree)
    count = len(degree)
    if count >= DENSE_BELOW:
        first = root / np.sqrt(degree.sum())

        def product(x: np.ndarray) -> np.ndarray:
            """D^-1/2 A D^-1/2 without its first eigenvector, whose eigenvalue 1 becomes -1: below all others."""
            flat = x.reshape(-1)
            return np.asarray((affinity @ (flat / root)) / root - 2 * first * (first @ flat))

        # Deterministic start: the first column of the identity would miss a part that it is not connected to.
        start = np.random.default_rng(0).standard_normal(count)
        try:
            operator = LinearOperator((count, count), matvec=product, dtype=np.float64)
            _, vectors = eigsh(operator, k=1, which="LA", v0=start, tol=1e-10, ncv=20, maxiter=20)
            return np.asarray(vectors[:, 0] / root)
        except ArpackError:
            pass  # several parts that hardly touch: the dense solver tells their eigenvalues apart
    scaled = affinity / root[:, None] / root
    _, vectors = eigh(scaled, subset_by_index=[count - 2, count - 2])
    return np.asarray(vectors[:, 0] / root)
