"""MIGM-Shortcut: a trained head predicts the next features from the last ones and the tokens just revealed.

Source: arXiv 2602.23996, section 3.
"""

from __future__ import annotations

from typing import Any

from ..denoiser import Features, Revealed
from ..schedule import Step


class ShortcutPredictor:
    """Asks a shortcut head. The head and the model may differ in dtype; features keep the model's.

    Args:
        head: network of `shortcut.heads`, with `next_features(model, features, conditions, revealed, mask_ratio)`.
        model: the model it was trained for.
        conditions: those of the run, one for each guidance branch.
    """

    def __init__(self, head: Any, model: Any, conditions: Any):
        self.head, self.model, self.conditions = head, model, conditions

    def observe(self, step: Step, features: Features) -> None:
        """Needs nothing of a full pass: the last features are handed to `predict`."""

    def predict(self, step: Step, features: Features, revealed: Revealed) -> Features:
        """The features of `step`, one tensor for each guidance branch."""
        return self.head.next_features(
            self.model, features, self.conditions, revealed, step.mask_ratio
        )
