"""Compute the loss of the original trainers, on our heads: squared error and divergence of each branch by itself.

Ours takes the divergence after guidance and counts masked positions only; all else is shared.

Source: MIGM-Shortcut, loss_fn in MaskGIT-Shortcut/train_shortcut.py and, with all positions of the sequence, in
DiMOO-Shortcut/train_shortcut.py; tests/golden/README.md section 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from shortcut_pack.shortcut.denoiser import image_features
from shortcut_pack.shortcut.models.lumina_dimoo.transformer import OnGrid
from shortcut_pack.shortcut.train.loss import Window, divergence, feature_mse, mean, predict
from torch import Tensor


@dataclass(frozen=True)
class OriginalObjective:
    """Hold the weights of the parts and the temperature of the divergence."""

    mse: float
    kl: float
    temperature: float
    only_masked: bool = True


def step_losses(
    model: Any, estimate: Any, target: Any, index_BN: Tensor, objective: OriginalObjective
) -> dict[str, Tensor]:
    """Return both parts of the loss of one step."""
    pairs = list(zip(estimate, target, strict=True))

    def logits(features_BSD: Tensor) -> Tensor:
        if objective.only_masked:
            return model.logits(image_features(model, features_BSD, index_BN), index_BN)
        if isinstance(model, OnGrid):
            return model.logits(features_BSD, index_BN)  # needs no positions
        everywhere = torch.arange(features_BSD.shape[1]).expand(len(features_BSD), -1)
        return model.logits(features_BSD, everywhere)

    def kl(estimate_BSD: Tensor, target_BSD: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = logits(target_BSD) / objective.temperature
        return divergence(logits(estimate_BSD) / objective.temperature, wanted)

    if objective.only_masked:
        mse = mean(feature_mse(model, e, t, index_BN) for e, t in pairs)
    else:
        mse = mean(F.mse_loss(e.float(), t.float()) for e, t in pairs)
    return {"mse": mse, "kl": mean(kl(e, t) for e, t in pairs)}


def window_loss(
    head: Any, model: Any, part: Window, objective: OriginalObjective
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the scalar to minimise and its parts, for a window of one step."""
    (estimate,) = predict(head, model, part)
    parts = step_losses(model, estimate, part.targets[0], part.masked_index[0], objective)
    scale = objective.kl * objective.temperature**2
    return objective.mse * parts["mse"] + scale * parts["kl"], parts
