"""Compute the loss of a shortcut head: its features against the teacher's, over several steps.

B  images    S  sequence of one guidance branch    D  width    N  positions that count
V  codebook size
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..denoiser import Features, MaskedImageModel, Revealed, guided_logits, image_features, merged
from ..models.architecture import Branches, HeadNetwork
from ..schedule import Step
from .record import Trajectories


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Weigh the parts of the loss. Both count positions that are still masked only."""

    mse: float = 1.0  # squared error of the features
    guided_kl: float = 0.0  # divergence of the guided codes, which decide at use

    def check(self) -> None:
        """Raise ValueError for the first figure that is out of range, or if nothing has a weight."""
        weights = asdict(self)
        for name, value in weights.items():
            if not 0 <= value < math.inf:
                raise ValueError(
                    f"the weight of {name.replace('_', ' ')} in the loss must be a finite number of at least 0, got "
                    f"{value}."
                )
        if not any(weights.values()):
            raise ValueError(
                f"no part of the loss has a weight. Give one of {', '.join(weights)} one above 0."
            )


@dataclass(frozen=True, slots=True)
class Window:
    """Hold a teacher's features at one step and what it did in the next `len(targets)` steps."""

    conditions: Branches
    features: Features
    revealed: list[Revealed]  # before each of the steps to predict
    steps: list[Step]  # to predict
    targets: list[Features]  # the teacher's features in them
    masked_index: list[Tensor]  # (B, N) positions masked in them


def window(
    run: Trajectories,
    start: int,
    length: int,
    images: Tensor | slice = slice(None),
    device: torch.device | None = None,
    *,
    only_last: bool = False,
) -> Window:
    """Return the window of steps `start` + 1 .. `start` + `length` of some `images` of a run, in float32.

    Args:
        device: where to; None = where the run is kept.
        only_last: True: of its last step alone, to be predicted at once from all tokens revealed until then.

    Raises:
        ValueError: the run has no such steps.
    """
    if not (start >= 0 and 1 <= length <= len(run.steps) - 1 - start):
        raise ValueError(
            f"a window of {length} steps after step {start} does not fit a run of "
            f"{len(run.steps)} steps."
        )

    def pick(tensor: Tensor) -> Tensor:
        return tensor[images].to(device)

    def pick_features(features: Features) -> Features:
        return tuple(pick(f).float() for f in features)

    before, after = range(start, start + length), range(start + 1, start + length + 1)
    revealed = [run.revealed[t] for t in before]
    if only_last:
        before, after, revealed = before[-1:], after[-1:], [merged(revealed)]
    return Window(
        tuple(c[images].to(device) for c in run.conditions),
        pick_features(run.features[start]),
        [Revealed(pick(r.codes_BK), pick(r.index_BK)) for r in revealed],
        [run.steps[t] for t in after],
        [pick_features(run.features[t]) for t in after],
        [pick(run.masked_index[t]) for t in before],
    )


def predict(head: HeadNetwork, model: MaskedImageModel, window: Window) -> list[Features]:
    """Return the head's features for each step of `window`, as the sampler would get them after a full pass."""
    features, predicted = window.features, []
    for i, step in enumerate(window.steps):
        revealed = window.revealed[i]
        if head.config.from_full:
            features, revealed = window.features, merged(window.revealed[: i + 1])
        features = head.next_features(model, features, window.conditions, revealed, step.mask_ratio)
        predicted.append(features)
    return predicted


def window_loss(
    head: HeadNetwork, model: MaskedImageModel, window: Window, objective: Objective
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean loss of the steps of `window` and its parts."""
    losses = [
        step_losses(model, estimate, target, index_BN, step, objective)
        for estimate, target, index_BN, step in zip(
            predict(head, model, window),
            window.targets,
            window.masked_index,
            window.steps,
            strict=True,
        )
    ]
    parts = {name: mean(loss[name] for loss in losses) for name in losses[0]}
    scales = asdict(objective)
    return torch.stack([scales[name] * value for name, value in parts.items()]).sum(), parts


def step_losses(
    model: MaskedImageModel,
    estimate: Features,
    target: Features,
    masked_index_BN: Tensor,
    step: Step,
    objective: Objective,
) -> dict[str, Tensor]:
    """Return the parts of the loss of one step that have a weight, each a mean over branches.

    Source: MIGM-Shortcut, loss_fn in MaskGIT-Shortcut/train_shortcut.py; tests/golden/README.md section 8.
    Differs: the divergence is taken after guidance, where it decides; the original takes it of each branch.
    """
    pairs = zip(estimate, target, strict=True)
    parts = {"mse": mean(feature_mse(model, e, t, masked_index_BN) for e, t in pairs)}
    if objective.guided_kl != 0:
        found = guided_logits(model, estimate, step.guidance, masked_index_BN)
        with torch.no_grad():
            wanted = guided_logits(model, target, step.guidance, masked_index_BN)
        parts["guided_kl"] = divergence(found, wanted)
    return parts


def feature_mse(
    model: MaskedImageModel, estimate_BSD: Tensor, target_BSD: Tensor, index_BN: Tensor
) -> Tensor:
    """Return the mean squared error at the image positions `index_BN`."""
    found, wanted = (image_features(model, f, index_BN) for f in (estimate_BSD, target_BSD))
    return F.mse_loss(found.float(), wanted.float())


def divergence(logits_BNV: Tensor, wanted_BNV: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence from the wanted distributions, mean over positions."""
    logp_BNV, wanted_BNV = (x.float().log_softmax(-1) for x in (logits_BNV, wanted_BNV))
    return F.kl_div(
        logp_BNV.flatten(0, 1), wanted_BNV.flatten(0, 1), reduction="batchmean", log_target=True
    )


def mean(values: Iterable[Tensor]) -> Tensor:
    """Return the mean of scalar tensors."""
    return torch.stack(list(values)).mean()
