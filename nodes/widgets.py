"""The widgets of the Shortcut Masked Sampler, and the settings of a run that they stand for.

What the preset `custom` lets the widgets decide is in that option of the preset alone. ShortcutMaskedSampler, the node
before, has all widgets in a row: saved workflows hold their values by position.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..shortcut.checkpoint import Checkpoint
from ..shortcut.models.architecture import ONE_STEP, PRESET_NAMES
from ..shortcut.schedule import ORDERS, SCHEDULES, Settings
from ..shortcut.settings import NO_SPREAD, stated_full_steps, usual_settings, with_preset

CUSTOM = "custom"
PRESETS = (*PRESET_NAMES, ONE_STEP)
LATER = {"cfg_image": 4.0, "spread": 0, "order": ORDERS[0]}  # workflows of before do not have them
# Fields of `Settings` by the widgets that hold their values as they are.
SAME = ("schedule", "temperature", "choice_temperature", "order")
FIELDS = {"steps": "num_steps", "cfg_ramp": "guidance_ramp", **{name: name for name in SAME}}


def seed_widget(tooltip: str, *, control: bool = True) -> Any:
    """Return the widget of a seed, with ComfyUI's choice of what becomes of it after a run if `control`."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=control,
        tooltip=tooltip,
    )


def weight_widget(name: str, default: float, tooltip: str, **more: Any) -> Any:
    """Return the widget of a guidance weight."""
    return io.Float.Input(
        name, default=default, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=tooltip, **more
    )


def temperature_widget(name: str, default: float, tooltip: str) -> Any:
    """Return the widget of a temperature."""
    return io.Float.Input(
        name,
        default=default,
        min=0.0,
        max=10.0,
        step=0.05,
        round=0.01,
        tooltip=tooltip,
        advanced=True,
    )


def read_widgets() -> tuple[Any, Any]:
    """Return the widgets that are read with any preset: seed and denoise."""
    return (
        seed_widget(
            "Decides every random choice. Image i of a batch is the same whatever the batch size."
        ),
        io.Float.Input(
            "denoise",
            default=1.0,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip="Share of the tokens, under the mask if there is one, that is made anew, "
            "picked at random. Lower: closer to the given image. Keep 1 with Empty Latent "
            "Image.",
        ),
    )


def preset_widget() -> Any:
    """Return the choice of a preset. `custom` brings the widgets that the others decide."""
    # Only workflows of before have spread.
    widgets = [*custom_widgets(), *(item for item in later_widgets() if item.id != "spread")]
    for widget in widgets:
        widget.optional = True  # a setting that is missing is as usual for the model
    custom = io.DynamicCombo.Option(CUSTOM, widgets)
    return io.DynamicCombo.Input(
        "preset",
        options=[*(io.DynamicCombo.Option(name, []) for name in PRESETS), custom],
        tooltip="Settings that suit the loaded model. quality: slowest; fast: less detail. "
        "one_step: for one-step students. custom: widgets for all of them appear.",
    )


def flat_preset_widget() -> Any:
    """Return the choice of a preset of the node before, beside the widgets that it decides."""
    return io.Combo.Input(
        "preset",
        options=[CUSTOM, *PRESETS],
        default=CUSTOM,
        optional=True,
        tooltip="Settings that suit the loaded model, in place of all widgets but seed and "
        "denoise. quality: slowest; fast: less detail. one_step: for one-step students. "
        "custom: the widgets decide.",
    )


def custom_widgets() -> list[Any]:
    """Return the widgets of what a preset decides."""
    return [
        io.Int.Input(
            "steps",
            default=32,
            min=1,
            max=1024,
            tooltip="In how many steps the image is revealed. More: better, slower. Typical: 64 "
            "for Lumina-DiMOO, 32 for MaskGIT with a head, 8 to 32 without.",
        ),
        io.Int.Input(
            "full_steps",
            default=8,
            min=1,
            max=1024,
            tooltip="How many steps are full passes; a head answers the others. Fewer: faster, "
            "less exact. All: the original method. Typical: 9 to 14 of 64, 8 to 12 of 32.",
        ),
        weight_widget(
            "cfg",
            2.8,
            tooltip="Guidance, as the original counts it: KSampler's cfg is this + 1. Higher: "
            "closer to class or text, less varied. 0: off, half the work. Typical: 2 to "
            "5.",
        ),
        io.Boolean.Input(
            "cfg_ramp",
            default=True,
            advanced=True,
            tooltip="On: guidance rises evenly from 0 in the first step to cfg in the last, as "
            "MaskGIT has it. Off: cfg in every step. No effect on speed.",
        ),
        io.Combo.Input(
            "schedule",
            options=list(SCHEDULES),
            default="arccos",
            advanced=True,
            tooltip="How the number of tokens per step grows. Take the model's own: arccos for "
            "MaskGIT, lumina for Lumina-DiMOO, amused for aMUSEd and Meissonic, with a "
            "mask amused-linear.",
        ),
        temperature_widget(
            "temperature",
            1.0,
            tooltip="Randomness of the codes. Lower: smoother and plainer. 0 = always the most "
            "likely code. Typical: 0.7 to 1. No effect on speed.",
        ),
        io.Float.Input(
            "choice_temperature",
            default=7.0,
            min=0.0,
            max=1000.0,
            step=0.5,
            round=0.01,
            advanced=True,
            tooltip="Randomness of where tokens are revealed. Too low: flat images; too high: "
            "incoherent ones. Typical: 4 to 12 for MaskGIT, 1 for Lumina-DiMOO, 8 and 4 "
            "for the shipped models.",
        ),
    ]


def later_widgets() -> list[Any]:
    """Return the widgets that came later: optional and last, or saved workflows would break."""
    return [
        weight_widget(
            "cfg_image",
            LATER["cfg_image"],
            tooltip="Guidance towards the source images of Text Condition. Higher: less change. "
            "0: off, a third less work. Typical: 4 for Lumina-DiMOO, 1.5 for the shipped "
            "text model.",
            optional=True,
            advanced=True,
        ),
        io.Int.Input(
            "spread",
            default=LATER["spread"],
            min=0,
            max=64,
            optional=True,
            advanced=True,
            tooltip="Without effect: here so that workflows of before open.",
        ),
        io.Combo.Input(
            "order",
            options=list(ORDERS),
            default=LATER["order"],
            optional=True,
            advanced=True,
            tooltip="Which tokens are revealed first. confidence: those that the model is surest "
            "of. corrected: the same, and full passes take unlikely ones back. halton: far from "
            "each other.",
        ),
    ]


def settings_of(
    checkpoint: Checkpoint,
    num_guided: int,
    has_head: bool,
    has_mask: bool,
    values: dict[str, Any],
) -> Settings:
    """Return the settings of a run. A setting without a widget is as usual for the model.

    Args:
        num_guided: branches to guide away from; each gets a weight.
        has_mask: True: a mask says which tokens are made.
        values: of the preset and, for `custom`, of its widgets; one that is missing is as usual for the model.

    Raises:
        ValueError: one is out of range, or the model has no such preset.
    """
    usual = usual_settings(checkpoint, num_guided=num_guided, has_mask=has_mask)
    if values["preset"] == CUSTOM:
        given = {FIELDS[name]: value for name, value in values.items() if name in FIELDS}
        weights = zip(("cfg", "cfg_image"), usual.guidance, strict=False)
        guidance = [values.get(name, weight) for name, weight in weights]
        settings = replace(usual, guidance=(*guidance, *usual.guidance[2:]), **given)
        full = stated_full_steps(usual, checkpoint.architecture, settings.num_steps)
        settings = replace(settings, full_steps=values.get("full_steps", full))
    else:
        settings = with_preset(usual, checkpoint, values["preset"])
    if not has_head:
        settings = replace(settings, full_steps=None)
    settings.check()
    return settings


def doubt_of_schedule(checkpoint: Checkpoint, settings: Settings, *, has_mask: bool) -> str | None:
    """Return a line when the schedule is not the one that the model was made with, else None."""
    usual = usual_settings(checkpoint, has_mask=has_mask)
    if settings.schedule == usual.schedule:
        return None
    return (
        f"schedule is {settings.schedule}, but {checkpoint.name} was made with {usual.schedule}. "
        "A preset sets all that suits it."
    )


def preset_in_words(values: dict[str, Any], settings: Settings) -> list[str]:
    """Return what to say of the widgets: a line of what none has set, and of those without effect."""
    preset, given, most = values["preset"], values.keys() - {"preset"}, settings.num_steps
    set_by_it = {
        "steps": settings.num_steps,
        "full_steps": settings.num_steps if settings.full_steps is None else settings.full_steps,
        "cfg": " and ".join(f"{weight:g}" for weight in settings.guidance) or "0",
        "cfg_ramp": "on" if settings.guidance_ramp else "off",
        "schedule": settings.schedule,
        "temperature": f"{settings.temperature:g}",
        "choice_temperature": f"{settings.choice_temperature:g}",
        "order": settings.order,
    }
    more = "; the widgets of these names are not read" if given else ""
    if preset == CUSTOM:
        set_by_it = {name: value for name, value in set_by_it.items() if name not in given}
        more = ", as usual for the model"
    said = ", ".join(f"{name} {value}" for name, value in set_by_it.items())
    lines = [f"preset {preset} has set {said}{more}"] if said else []
    if preset == CUSTOM and settings.full_steps is None and values.get("full_steps", most) < most:
        lines.append("full_steps is not read: nothing is wired to head. Accelerator needs no file")
    if preset == CUSTOM and values.get("spread"):
        lines.append(NO_SPREAD)
    return lines
