"""MIGM-Shortcut: a trained head predicts the next features from earlier ones and the tokens revealed since.

Source: arXiv 2602.23996, section 3.
Differs: a head may also be trained to start from the last full pass instead of from the step before (`from_full`), so
that its errors do not add up.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..denoiser import Accelerator, Conditions, Features, MaskedImageModel, Snapshot, Tokens
from ..models.architecture import HeadNetwork
from ..schedule import Step
from ..split import unsplit


class ShortcutHead(Accelerator):
    """Asks a shortcut head. The head and the model may differ in dtype; features keep the model's.

    Args:
        head: the network.
        model: the model that it was trained for.
        conditions: of the run, one for each guidance branch.
    """

    def __init__(
        self, head: HeadNetwork, model: MaskedImageModel, conditions: Sequence[Conditions]
    ):
        self.head, self.model, self.conditions = head, unsplit(model), conditions

    def predict(self, step: Step, tokens: Tokens, full: Snapshot, last: Snapshot) -> Features:
        """Return the features of `step`, one tensor for each guidance branch.

        A head that starts from full passes predicts the masked tokens alone: it never sees its own features again.
        """
        from_full = self.head.config.from_full
        start = full if from_full else last
        return self.head.next_features(
            self.model,
            start.features,
            self.conditions,
            start.revealed_until(step, tokens),
            step.mask_ratio,
            tokens.index_BN if from_full else None,
        )
