"""Frechet distance between two sets of feature vectors, each taken as a Gaussian, in float64.

Source: Heusel et al. 2017, equation 6.
Differs: features are the caller's; the trace of the matrix root comes from symmetric eigenvalues.

    B  vectors    D  width
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Mean (D,) and covariance (D, D)."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, features_BD: np.ndarray) -> Gaussian:
        """The Gaussian of at least two vectors. Raises ValueError for fewer, or if not finite."""
        features_BD = np.asarray(features_BD, dtype=np.float64)
        if features_BD.ndim != 2 or len(features_BD) < 2:
            raise ValueError(
                f"features must be (at least 2 vectors, width), got {features_BD.shape}."
            )
        if not np.isfinite(features_BD).all():
            raise ValueError(
                "features hold NaN or infinity: the pictures or the judge are damaged."
            )
        return cls(features_BD.mean(0), np.atleast_2d(np.cov(features_BD, rowvar=False)))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), at least 0."""
    root = _root(a.covariance)
    # (C1 C2)^(1/2) has the trace of (C1^(1/2) C2 C1^(1/2))^(1/2), whose argument is symmetric.
    eigenvalues = np.linalg.eigvalsh(root @ b.covariance @ root)
    overlap = np.sqrt(eigenvalues.clip(min=0)).sum()
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap
    return max(0.0, float(np.square(a.mean - b.mean).sum() + spread))


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric root of a positive semi-definite matrix; rounding below 0 counts as 0."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
