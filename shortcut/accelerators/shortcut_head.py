"""MIGM-Shortcut: a trained head predicts the next features from earlier ones and the tokens revealed since.

Source: arXiv 2602.23996, section 3.
Differs: a head may also be trained to start from the last full pass instead of from the step before (`from_full`), so
that its errors do not add up.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..denoiser import Features, Revealed, merged
from ..schedule import Step


class ShortcutPredictor:
    """Asks a shortcut head. The head and the model may differ in dtype; features keep the model's.

    Args:
        head: network of `shortcut.heads`; of it `next_features` and `config.from_full` are used.
        model: the model it was trained for.
        conditions: those of the run, one for each guidance branch.
    """

    def __init__(self, head: Any, model: Any, conditions: Any):
        self.head, self.model, self.conditions = head, model, conditions
        self.last_full: Features = ()
        self.since: list[Revealed] = []  # by the steps since `last_full`

    def observe(self, step: Step, features: Features) -> None:
        """Notes a full pass."""
        self.last_full, self.since = features, []

    def predict(
        self, step: Step, features: Features, revealed: Revealed, index_BN: Tensor
    ) -> Features:
        """The features of `step`, one tensor for each guidance branch.

        A head that starts from full passes works for `index_BN` alone; of its own features it sees none again.
        """
        wanted_BN = None
        if self.head.config.from_full:
            self.since.append(revealed)
            features, revealed, wanted_BN = self.last_full, merged(self.since), index_BN
        return self.head.next_features(
            self.model, features, self.conditions, revealed, step.mask_ratio, wanted_BN
        )
