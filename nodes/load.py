"""The loaders: a choice of file -> MODEL and VAE, or a shortcut head."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import folder_paths
import torch
from comfy_api.latest import io

from ..shortcut import shipped
from ..shortcut.checkpoint import Checkpoint, cast, naming
from ..shortcut.compatibility import check_vq
from ..shortcut.models.architecture import Network
from ..shortcut.pipeline import conditioner_of
from ..shortcut.quantized import FLOAT8, TARGETS, format_of, why_not_held
from ..shortcut.weight_formats import with_plain_lookups
from . import clip, folders, host
from .folders import HEADS, MODELS
from .host import NodeText, check_formats, check_held
from .native import CodeIds, CodeVAE, build_head, build_model
from .progress import with_bar

Head = io.Custom("SHORTCUT_HEAD")
AUTO = "auto"
FLOAT8_E4M3 = FLOAT8[torch.float8_e4m3fn]
WEIGHT_DTYPE_TOOLTIP = (
    "Type of the weights in memory. default: what suits the device and the file. float32: exact, "
    "twice the memory of the half types."
)


def weight_dtype_input(*more: str, tooltip: str = WEIGHT_DTYPE_TOOLTIP) -> io.Combo.Input:
    """Return the widget that both loaders have; `more` choices come last."""
    return io.Combo.Input(
        "weight_dtype",
        options=["default", *host.DTYPES, *more],
        default="default",
        advanced=True,
        tooltip=tooltip,
    )


class LoadMIGM(io.ComfyNode):
    """A masked image model with its VQ model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ShortcutLoadMIGM",
            display_name="Load Masked Image Model (MIGM)",
            category="shortcut",
            description="Loads a masked image generation model (Lumina-DiMOO, aMUSEd, Meissonic, "
            "MaskGIT), the VQ model that turns its codes into pixels, and its text encoder. Two "
            "small models of landscapes come with the pack: one takes classes, one takes text.",
            search_aliases=[
                "migm",
                "maskgit",
                "lumina",
                "dimoo",
                "lumina-dimoo",
                "amused",
                "meissonic",
                "load migm",
                "load model",
                "checkpoint loader",
            ],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folders.choices(MODELS),
                    default=shipped.NAME,
                    tooltip="A shipped model, or what lies in models/migm: the folder "
                    "Lumina-DiMOO as published, MaskGIT_ImageNet_512.pth or _256.pth, or one of "
                    "this project's .safetensors.",
                ),
                io.Combo.Input(
                    "vq_name",
                    options=[AUTO, *folders.choices(MODELS)],
                    default=AUTO,
                    tooltip="The VQ model (autoencoder). auto: the shipped one for a shipped "
                    "model, else the one beside the model file or in a folder beside it, such as "
                    "vqvae or VQGAN.",
                ),
                weight_dtype_input(
                    *TARGETS,
                    tooltip=f"{WEIGHT_DTYPE_TOOLTIP} float8_e4m3fn, int8_convrot: half; nvfp4, asym_w4a8: a third.",
                ),
                io.Combo.Input(
                    "clip_name",
                    options=[AUTO, *folder_paths.get_filename_list(clip.FOLDER)],
                    default=AUTO,
                    optional=True,
                    advanced=True,
                    tooltip="The text encoder of aMUSEd, Meissonic and Monetico. auto: the one in "
                    "the model's folder. Or a file of the same width in "
                    "models/text_encoders. Others have none.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model", display_name="MODEL", tooltip="For the Shortcut Masked Sampler."
                ),
                io.Vae.Output(
                    "vae",
                    display_name="VAE",
                    tooltip="For VAE Decode and VAE Encode. Its latents are code ids, which "
                    "cannot be blended.",
                ),
                io.Clip.Output(
                    "clip",
                    display_name="CLIP",
                    tooltip="For CLIP Text Encode, where the model reads text through CLIP: "
                    "aMUSEd, Meissonic and Monetico. Others have Text or Class Condition.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None = None, vq_name: str | None = None) -> bool:
        """Keep ComfyUI from refusing a file that is not in its list: `execute` says how to get it.

        A name that a graph does not have is None here, and is refused by ComfyUI.
        """
        return True

    @classmethod
    def fingerprint_inputs(
        cls, model_name: str | None, vq_name: str | None, clip_name: str | None = AUTO, **_: Any
    ) -> str:
        is_auto = vq_name == AUTO
        vq = folders.stamp(MODELS, model_name if is_auto else vq_name, "vq", is_beside=is_auto)
        stamps = [folders.stamp(MODELS, model_name, "model"), vq]
        if clip_name != AUTO:
            stamps.append(folders.stamp(clip.FOLDER, clip_name, "model"))
        return " ".join(stamps)

    @classmethod
    def execute(
        cls, model_name: str, vq_name: str, weight_dtype: str, clip_name: str = AUTO
    ) -> io.NodeOutput:
        checkpoint = folders.load(folders.path_of(MODELS, model_name, "model"), "model")
        assert checkpoint.path is not None
        conditioner = conditioner_of(checkpoint)
        if vq_name != AUTO:
            vq_path = folders.path_of(MODELS, vq_name, "vq")
        elif model_name in shipped.CHOICES:
            vq_path = shipped.CHOICES[model_name]["vq"]
        else:
            vq_path = checkpoint.folder
        vq = folders.load(vq_path, "vq")
        check_vq(vq, checkpoint)
        encoder = None
        if clip_name != AUTO:
            encoder = Path(folder_paths.get_full_path_or_raise(clip.FOLDER, clip_name))
        text_encoder = clip.build_clip(checkpoint, encoder)
        text = NodeText()
        checkpoint = as_chosen(checkpoint, weight_dtype, text)
        vae = CodeVAE(vq)
        latent_format = CodeIds(vq.config.downscale, vae.code_colours())
        model = build_model(checkpoint, weight_dtype, latent_format, conditioner)
        # TorchCompileModel asks for the MODEL again, without dynamic loading.
        again = checkpoint.path, weight_dtype, latent_format, conditioner
        model.cached_patcher_init = reloaded, again
        lines = [_loaded(checkpoint, model.model.network), _loaded(vq, vae.first_stage_model.vq)]
        text.keep(lines)
        return io.NodeOutput(model, vae, text_encoder)


def as_chosen(checkpoint: Checkpoint, weight_dtype: str, text: NodeText) -> Checkpoint:
    """Return the checkpoint, with quantized weights if that is the choice.

    Embeddings are plain where this ComfyUI looks no float8 up. Raises ValueError if it does not know the format.
    """
    target, device = TARGETS.get(weight_dtype), mm.get_torch_device()
    if target is not None and not checkpoint.quantized:
        with naming(checkpoint.path):
            check_formats({str(format_of(target))})
            shapes = checkpoint.shapes(target)
            check_held(device, shapes.values())
        through = partial(with_bar, total=len(shapes))
        checkpoint = cast(checkpoint, target, device, through)
    elif target is not None and format_of(target) not in checkpoint.quantized.values():
        formats = " and ".join(sorted(set(checkpoint.quantized.values())))
        line = f"weight_dtype {weight_dtype} is not read: {checkpoint.name} is quantized already, as {formats}"
        text.warn("Load MIGM", line)
    if target is None and checkpoint.quantized:
        computed = host.dtypes(weight_dtype, device, checkpoint)[1] or checkpoint.dtype
        checkpoint = shipped.widened(checkpoint, computed)
        if why := why_not_held(device, checkpoint.tensors.values()):
            line = f"{checkpoint.name} has float8 weights, which {device} cannot hold ({why}): they take twice as much"
            text.warn("Load MIGM", line)
            checkpoint = cast(checkpoint, computed)
    if host.looks_up_float8():
        return checkpoint
    plain = with_plain_lookups(checkpoint.layout, checkpoint.tensors, checkpoint.quantized)
    return replace(checkpoint, tensors=plain[0], quantized=plain[1])


def reloaded(path: Path, weight_dtype: str, *others: Any, disable_dynamic: bool = False) -> Any:
    """Return the MODEL of a file again; `others` as for `build_model`."""
    checkpoint = as_chosen(folders.load(path, "model"), weight_dtype, NodeText())
    return build_model(checkpoint, weight_dtype, *others, disable_dynamic=disable_dynamic)


def _loaded(checkpoint: Checkpoint, network: Network) -> str:
    """Return what a network in memory is, in a line."""
    tensors = network.state_dict().values()
    stored = {*checkpoint.quantized.values()} or {str(network.dtype).removeprefix("torch.")}
    return (
        f"{checkpoint.layout.title}: {checkpoint.num_parameters / 1e6:,.1f} million parameters, "
        f"{' and '.join(sorted(stored))}, {sum(tensor.nbytes for tensor in tensors) / 1e9:.2f} GB"
    )


class LoadHead(io.ComfyNode):
    """A shortcut head."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ShortcutLoadHead",
            display_name="Load Shortcut Head",
            category="shortcut",
            description="Loads the small network that predicts the model's features in the steps "
            "between full passes. Each model needs its own. Without one, the sampler runs as the "
            "original does.",
            search_aliases=["migm shortcut", "accelerate", "speed up", "maskgit head", "dimoo"],
            inputs=[
                io.Combo.Input(
                    "head_name",
                    options=folders.choices(HEADS),
                    default=shipped.NAME,
                    tooltip="The shipped head for the shipped model of the same name, or a file in "
                    "models/migm_heads such as dimoo-shortcut.pth or maskgit-shortcut.pth. The "
                    "sampler refuses a head of another model.",
                ),
                weight_dtype_input(),
            ],
            outputs=[
                Head.Output("head", display_name="head", tooltip="For the Shortcut Masked Sampler.")
            ],
        )

    @classmethod
    def validate_inputs(cls, head_name: str | None = None) -> bool:
        """Change as the file or the choices of Load MIGM do: see its own."""
        return True

    @classmethod
    def fingerprint_inputs(cls, head_name: str | None, **_: Any) -> str:
        return folders.stamp(HEADS, head_name, "head")

    @classmethod
    def execute(cls, head_name: str, weight_dtype: str) -> io.NodeOutput:
        checkpoint = folders.load(folders.path_of(HEADS, head_name, "head"), "head")
        head = build_head(checkpoint, weight_dtype)
        NodeText().keep([_loaded(checkpoint, head.model)])
        return io.NodeOutput(head)
