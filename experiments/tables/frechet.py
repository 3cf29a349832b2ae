"""Measure the Frechet distance between two sets of feature vectors, each taken as a Gaussian, in float64.

Source: Heusel et al. 2017, equation 6.
Differs: the features are the caller's.

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
        """Fit a Gaussian to at least two vectors. Raises ValueError if they are fewer or not finite."""
        features_BD = np.asarray(features_BD, dtype=np.float64)
        if features_BD.ndim != 2 or len(features_BD) < 2 or not np.isfinite(features_BD).all():
            raise ValueError(
                f"features must be finite and (at least 2 vectors, width), got {features_BD.shape} "
                f"with {np.count_nonzero(~np.isfinite(features_BD))} values that are NaN or infinite."
            )
        return cls(features_BD.mean(0), np.atleast_2d(np.cov(features_BD, rowvar=False)))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Return |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), at least 0."""
    # C1 C2 is similar to a positive semi-definite matrix: its eigenvalues are real and not negative.
    eigenvalues = np.linalg.eigvals(a.covariance @ b.covariance).real
    overlap = np.sqrt(eigenvalues.clip(min=0)).sum()
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap
    return max(0.0, float(np.square(a.mean - b.mean).sum() + spread))
