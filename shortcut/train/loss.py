"""What a shortcut head is trained on: its features against the teacher's, over several steps.

B  images    S  sequence of one guidance branch    D  width    N  positions that count
V  codebook size    L  image tokens
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..accelerators.shortcut_head import ShortcutPredictor
from ..denoiser import (
    Denoised,
    Features,
    Model,
    Revealed,
    guided_logits,
    image_features,
    merged,
)
from ..noise import Noise
from ..sampler import Trace, positions, sample
from ..schedule import Step
from .record import Trajectories


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Weights of the parts of the loss. The defaults are the original's."""

    mse: float = 1.0
    kl: float = 0.0  # of the codes' distributions, each branch for itself
    kl_temperature: float = 1.0
    guided_kl: float = 0.0  # of the guided distribution, which decides at use
    only_masked: bool = (
        True  # True: positions still masked count. False: all of the sequence (`mse`, `kl`)
    )

    def check(self) -> None:
        """Raises ValueError for the first figure that is out of range, or if nothing has a weight."""
        weights = {name: getattr(self, name) for name in ("mse", "kl", "guided_kl")}
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
        if not 0 < self.kl_temperature < math.inf:
            raise ValueError(
                f"kl temperature must be a finite number above 0, got {self.kl_temperature}."
            )


@dataclass(frozen=True, slots=True)
class Window:
    """A teacher's features at one step and what it did in the `len(targets)` steps after it."""

    conditions: tuple[Tensor, ...]
    features: Features
    revealed: list[Revealed]  # before each of the steps to predict
    steps: list[Step]  # to predict
    targets: list[Features]  # the teacher's features in them
    masked_index: list[Tensor]  # (B, N) positions masked in them
    codes_BL: Tensor  # that the teacher's run ended with
    noise: Noise | None = None  # None: the tokens are the teacher's. Else: for `on_its_own`


def window(
    run: Trajectories,
    start: int,
    length: int,
    images: Tensor | slice = slice(None),
    device: torch.device | None = None,
    noise: Noise | None = None,
) -> Window:
    """The window of steps `start` + 1 .. `start` + `length` of some `images` of a run, in float32.

    Args:
        device: where to; None = where the run is kept.
        noise: of these images, where their tokens shall be the head's own.

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
    return Window(
        tuple(pick(c) for c in run.conditions),
        pick_features(run.features[start]),
        [Revealed(pick(r.codes_BK), pick(r.index_BK)) for r in revealed],
        [run.steps[t] for t in after],
        [pick_features(run.features[t]) for t in after],
        [pick(run.masked_index[t]) for t in before],
        pick(run.codes_BL),
        noise,
    )


def last_step(part: Window) -> Window:
    """The last step of `part`, to be predicted at once from all tokens revealed until then."""
    return replace(
        part,
        revealed=[merged(part.revealed)],
        steps=part.steps[-1:],
        targets=part.targets[-1:],
        masked_index=part.masked_index[-1:],
    )


def predict(head: Any, model: Model, window: Window) -> list[Features]:
    """The head's features for each step of `window`, as `predictors.head` would get them after a full pass."""
    if head.config.from_full:
        return [
            head.next_features(
                model,
                window.features,
                window.conditions,
                merged(window.revealed[: i + 1]),
                step.mask_ratio,
            )
            for i, step in enumerate(window.steps)
        ]
    features, predicted = window.features, []
    for step, revealed in zip(window.steps, window.revealed, strict=True):
        features = head.next_features(model, features, window.conditions, revealed, step.mask_ratio)
        predicted.append(features)
    return predicted


def on_its_own(head: Any, model: Model, part: Window, noise: Noise) -> Window:
    """The last step of `part` as the head alone would get there.

    From the second step on, codes are drawn from the head's features; the model recomputes the
    target of the last.

    Source: MIGM-Shortcut MaskGIT-Shortcut/train_shortcut.py rollout, run_step.
    Differs: codes are drawn after guidance where the window has more than one branch.

    Args:
        noise: with draws for all steps of the run, as `sampler.sample` takes it.
    """
    if len(part.steps) == 1:
        return part
    student = _Student(head, model, part)
    traces: list[Trace] = []
    is_masked_BL = torch.zeros_like(part.codes_BL, dtype=torch.bool).scatter(
        1, part.masked_index[0], True
    )
    codes_BL = sample(student, part.codes_BL, is_masked_BL, part.steps[:-1], noise, traces.append)
    last = traces[-1]
    with torch.no_grad():
        target = model.features(codes_BL, last.is_masked_BL, part.conditions)
    revealed = [part.revealed[0], *(trace.revealed for trace in traces)]
    return Window(
        part.conditions,
        part.features if head.config.from_full else student.features,
        [merged(revealed) if head.config.from_full else last.revealed],
        part.steps[-1:],
        [target],
        [positions(last.is_masked_BL, last.step.num_masked_after)],
        codes_BL,
    )


class _Student:
    """Answers the sampler with the head's features, from the first step of a window on."""

    def __init__(self, head: Any, model: Model, part: Window):
        self.model, self.part = model, part
        self.predictor = ShortcutPredictor(head, model, part.conditions)
        self.predictor.observe(part.steps[0], part.features)
        self.features = part.features

    def __call__(
        self,
        step: Step,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        index_BN: Tensor,
        revealed: Revealed | None,
    ) -> Denoised:
        self.features = self.predictor.predict(
            step, self.features, revealed or self.part.revealed[0], index_BN
        )
        logits_BNV = guided_logits(self.model, self.features, step.guidance, index_BN)
        return Denoised(logits_BNV, self.features, False)


def window_loss(
    head: Any, model: Model, window: Window, objective: Objective
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean loss of the steps of `window` and its parts."""
    losses: list[dict[str, Tensor]] = []
    for i, estimate in enumerate(predict(head, model, window)):
        losses.append(
            step_losses(
                model,
                estimate,
                window.targets[i],
                window.masked_index[i],
                window.steps[i],
                objective,
            )
        )
    parts = {name: torch.stack([loss[name] for loss in losses]).mean() for name in losses[0]}
    return weighted(parts, objective), parts


def weighted(parts: dict[str, Tensor], objective: Objective) -> Tensor:
    """The scalar to minimise."""
    scale = {
        "mse": objective.mse,
        "kl": objective.kl * objective.kl_temperature**2,
        "guided_kl": objective.guided_kl,
    }
    return torch.stack([scale[name] * value for name, value in parts.items()]).sum()


def step_losses(
    model: Model,
    estimate: Features,
    target: Features,
    masked_index_BN: Tensor,
    step: Step,
    objective: Objective,
) -> dict[str, Tensor]:
    """The parts of the loss of one step that have a weight, each a mean over branches.

    Source: MIGM-Shortcut, loss_fn in MaskGIT-Shortcut/train_shortcut.py (`only_masked`) and in
    DiMOO-Shortcut/train_shortcut.py (all of the sequence); golden/README.md section 8.
    Differs: the divergence may also be taken after guidance, then where it decides: at masked positions.
    """
    index = masked_index_BN if objective.only_masked else None
    parts = {
        "mse": mean(feature_mse(model, e, t, index) for e, t in zip(estimate, target, strict=True))
    }
    if objective.kl != 0:
        pairs = zip(estimate, target, strict=True)
        parts["kl"] = mean(
            _feature_divergence(model, e, t, index, objective.kl_temperature) for e, t in pairs
        )
    if objective.guided_kl != 0:
        found = guided_logits(model, estimate, step.guidance, masked_index_BN)
        with torch.no_grad():
            wanted = guided_logits(model, target, step.guidance, masked_index_BN)
        parts["guided_kl"] = divergence(found, wanted)
    return parts


def _feature_divergence(
    model: Any,
    estimate_BSD: Tensor,
    target_BSD: Tensor,
    index_BN: Tensor | None,
    temperature: float,
) -> Tensor:
    """Divergence of the codes at image positions `index_BN`; None = everywhere in the sequence."""

    def logits(features_BSD: Tensor) -> Tensor:
        if index_BN is None:
            return model.logits_everywhere(features_BSD)
        return model.logits(image_features(model, features_BSD, index_BN), index_BN)

    with torch.no_grad():
        wanted_BNV = logits(target_BSD)
    return divergence(logits(estimate_BSD), wanted_BNV, temperature)


def feature_mse(
    model: Any, estimate_BSD: Tensor, target_BSD: Tensor, index_BN: Tensor | None
) -> Tensor:
    """Mean squared error at image positions `index_BN`; None = everywhere in the sequence."""
    if index_BN is not None:
        estimate_BSD, target_BSD = (
            image_features(model, f, index_BN) for f in (estimate_BSD, target_BSD)
        )
    return F.mse_loss(estimate_BSD.float(), target_BSD.float())


def divergence(logits_BNV: Tensor, wanted_BNV: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence from the wanted distributions, mean over positions."""
    logp_BNV, wanted_BNV = (
        x.float().div(temperature).log_softmax(-1) for x in (logits_BNV, wanted_BNV)
    )
    return F.kl_div(
        logp_BNV.flatten(0, 1), wanted_BNV.flatten(0, 1), reduction="batchmean", log_target=True
    )


def mean(values: Any) -> Tensor:
    """Mean of scalar tensors."""
    return torch.stack(list(values)).mean()
