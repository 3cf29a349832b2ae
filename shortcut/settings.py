"""The sampler settings of a run: the architecture's, those that the model's file states, those that a user gives."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from .accelerators.choice import own_full_steps
from .checkpoint import Checkpoint
from .guard import MAX_STEPS, check_whole, naming
from .models.architecture import ONE_STEP, Architecture
from .schedule import HALTON, Settings

logger = logging.getLogger(__name__)

USUAL_PRESET = "balanced"  # whose share of full steps a run with a head has
USUAL_SHARE = 0.25  # the same of a model without presets
# A setting of earlier versions, which files, command lines and workflows may still state.
NO_SPREAD = "spread has no effect any more: pictures gained nothing by it"


def usual_settings(
    model: Checkpoint, *, num_guided: int | None = None, has_mask: bool = False
) -> Settings:
    """Return the sampler settings that the model's file states; its original's for the rest.

    Args:
        num_guided: branches to guide away from, such as 2 for conditions with source images; None = as the settings
            have it.
        has_mask: True: some tokens of a picture stay, where a mask says so.

    Raises:
        ValueError: the file states one that does not exist or is out of range.
    """
    architecture = model.architecture
    stated = {k: tuple(v) if isinstance(v, list) else v for k, v in model.metadata.defaults.items()}
    if stated.pop("spread", 0):
        logger.warning("%s: %s.", model.name, NO_SPREAD)
    source_guidance = stated.pop("source_guidance", architecture.guidance.get(2))
    with naming(model.path):
        try:
            found = replace(architecture.settings, **stated)
            if has_mask and architecture.inpaint_schedule is not None:
                found = replace(found, schedule=architecture.inpaint_schedule)
            if num_guided == 2 and source_guidance is not None:
                found = replace(found, guidance=source_guidance)
            elif num_guided not in (None, len(found.guidance)):
                found = replace(
                    found, guidance=architecture.guidance.get(num_guided, (0.0,) * num_guided)
                )
            found.check()
        except (TypeError, ValueError) as error:
            raise ValueError(f"its metadata state unusable sampler settings: {error}") from error
    return found


def chosen_settings(
    model: Checkpoint,
    *,
    num_guided: int,
    accelerator: str | None,
    preset: str | None = None,
    steps: int | None = None,
    full_steps: int | tuple[int, ...] | None = None,
    cfg: float | None = None,
    cfg_image: float | None = None,
    has_mask: bool = False,
    **others: Any,
) -> Settings:
    """Return the model's settings with those that were given. None = not given.

    Args:
        num_guided: branches to guide away from.
        preset: sets steps and full steps.
        accelerator: name of what answers steps that are not full passes; None = all are.
        full_steps: how many steps are full passes, or which; None = what is usual with the accelerator.
        has_mask: as for `usual_settings`.
        cfg, cfg_image: guidance weights of the text or class, and of the source images.
        others: further fields of `Settings`.

    Raises:
        ValueError: one is out of range, or does not go with another.
    """
    usual = usual_settings(model, num_guided=num_guided, has_mask=has_mask)
    given = {name: value for name, value in others.items() if value is not None}
    if preset is not None:
        if steps is not None or full_steps is not None:
            raise ValueError("--preset sets --steps and --full-steps. Leave them out, or --preset.")
        usual = with_preset(usual, model, preset)
        steps, full_steps = usual.num_steps, usual.full_steps
    num_steps = usual.num_steps if steps is None else steps
    check_whole("steps", num_steps, 1, MAX_STEPS)
    if accelerator is not None and full_steps is None:
        full_steps = own_full_steps(accelerator, num_steps)
        full_steps = full_steps or stated_full_steps(usual, model.architecture, num_steps)
    weights = (cfg, cfg_image)
    if cfg is not None and num_guided < 1:
        raise ValueError(f"a {model.layout.title} has no guidance. Leave --cfg out.")
    if cfg_image is not None and num_guided < 2:
        raise ValueError(
            "--cfg-image is for a --task that starts from a picture, such as edit. Leave it out."
        )
    guidance = tuple(
        default if weight is None else weight
        for default, weight in zip(usual.guidance, weights, strict=False)
    )
    try:
        settings = replace(
            usual, num_steps=num_steps, full_steps=full_steps, guidance=guidance, **given
        )
    except TypeError:
        raise unknown_settings(given) from None
    settings.check()
    idle = given.keys() & {"order", "schedule", "choice_temperature"}
    if settings.is_one_step and idle:
        raise ValueError(
            f"the preset {ONE_STEP} makes all tokens in one step, where {', '.join(sorted(idle))} has no effect. "
            "Leave it out."
        )
    if settings.order == HALTON and "choice_temperature" in given:
        raise ValueError(
            f"the order {HALTON} has no choice temperature. Leave it out, or the order."
        )
    return settings


def unknown_settings(names: Iterable[str]) -> ValueError:
    """Return the error for settings that there are not, all those given."""
    known = "preset, steps, full_steps, cfg, cfg_image, temperature, choice_temperature, schedule, order"
    return ValueError(f"settings are {known}; got {', '.join(sorted(names))}.")


def with_preset(settings: Settings, model: Checkpoint, name: str) -> Settings:
    """Return settings with what a preset sets. Raises ValueError if the model has no such preset."""
    architecture = model.architecture
    if name == ONE_STEP and architecture.has_students:
        return replace(
            settings,
            num_steps=1,
            full_steps=1,
            guidance=(0.0,) * len(settings.guidance),
            temperature=1.0,
            is_one_step=True,
        )
    if name not in architecture.presets:
        presets = [*architecture.presets, *([ONE_STEP] if architecture.has_students else [])]
        known = (
            f"It has {', '.join(presets)}."
            if presets
            else "It has none: give steps. In ComfyUI, choose custom, which has them."
        )
        raise ValueError(f"{model.layout.title} has no preset {name!r}. {known}")
    preset = architecture.presets[name]
    return replace(settings, num_steps=preset.num_steps, full_steps=preset.num_full)


def stated_full_steps(
    usual: Settings, architecture: Architecture, num_steps: int
) -> int | tuple[int, ...]:
    """Return the full steps that a model's file states for so many steps, or else those of the usual preset's share.

    Args:
        usual: as its file states them.
    """
    if usual.full_steps is not None and usual.num_steps == num_steps:
        return usual.full_steps
    return usual_full_steps(architecture, num_steps)


def usual_full_steps(architecture: Architecture, num_steps: int) -> int:
    """Return the full steps of a run with a head: as large a share as in the usual preset.

    Raises:
        ValueError: the number of steps is out of range.
    """
    check_whole("steps", num_steps, 1, MAX_STEPS)
    share = USUAL_SHARE
    if (preset := architecture.presets.get(USUAL_PRESET)) is not None:
        return max(1, round(num_steps * preset.num_full / preset.num_steps))
    return max(1, round(num_steps * share))
