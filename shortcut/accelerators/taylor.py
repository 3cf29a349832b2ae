"""Forecast features: those of the last two full passes, drawn on in a straight line.

Source: TaylorSeer (Liu et al. 2025, arXiv 2503.06923): a Taylor expansion whose derivatives are finite differences.
Differs: of the last layer and of the first order only.
"""

from __future__ import annotations

from ..denoiser import Accelerator, Features, Snapshot, Tokens
from ..schedule import Step


class Taylor(Accelerator):
    """Goes on from the last full pass at the pace of the steps from the one before it."""

    looks_back = True

    def predict(self, step: Step, tokens: Tokens, full: Snapshot, last: Snapshot) -> Features:
        """Return the forecast for `step`. After the first full pass its features stay as they are."""
        if full.before is None:
            return full.features
        ahead = step.index - full.step.index
        ahead /= full.step.index - full.before.step.index
        pairs = zip(full.features, full.before.features, strict=True)
        return tuple(now_BSD + ahead * (now_BSD - before_BSD) for now_BSD, before_BSD in pairs)
