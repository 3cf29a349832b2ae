"""The loaders: a choice of file -> MODEL and VAE, or a shortcut head."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..shortcut import weights
from . import host
from .native import CodeIds, CodeVAE, build_head, build_model

Head = io.Custom("SHORTCUT_HEAD")
AUTO = "auto"
WEIGHT_DTYPE_TOOLTIP = (
    "Type of the weights in memory. default: what suits the device and the file. "
    "float32: exact, twice the memory. bfloat16: half the memory, fast on new GPUs. "
    "float16: half the memory, for older GPUs; an overflow is reported by the sampler."
)


def weight_dtype_input() -> io.Combo.Input:
    """The widget that both loaders have."""
    options = ["default", *host.DTYPES]
    return io.Combo.Input(
        "weight_dtype",
        options=options,
        default="default",
        advanced=True,
        tooltip=WEIGHT_DTYPE_TOOLTIP,
    )


class LoadMIGM(io.ComfyNode):
    """A masked image model with its VQ model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ShortcutLoadMIGM",
            display_name="Load MIGM",
            category="shortcut",
            description="Loads a masked image generation model (MaskGIT) and the VQ model that "
            "turns its codes into pixels. One small model of landscapes comes with the pack.",
            search_aliases=["maskgit", "masked image", "load model", "loader"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=host.choices(host.MODELS),
                    default=host.SHIPPED,
                    tooltip="The shipped model, or a file in models/migm: "
                    "MaskGIT_ImageNet_512.pth or _256.pth as published, or one of this project's "
                    ".safetensors.",
                ),
                io.Combo.Input(
                    "vq_name",
                    options=[AUTO, *host.choices(host.MODELS)],
                    default=AUTO,
                    tooltip="The VQ model (autoencoder). auto: the shipped one for the shipped "
                    "model, else the one beside the model file or in a folder beside it, such as "
                    "VQGAN/last.ckpt.",
                ),
                weight_dtype_input(),
            ],
            outputs=[
                io.Model.Output(
                    "model", display_name="model", tooltip="For the Shortcut Masked Sampler."
                ),
                io.Vae.Output(
                    "vae",
                    display_name="vae",
                    tooltip="For VAE Decode and VAE Encode. Its latents are code ids, which "
                    "cannot be blended.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str, vq_name: str, **_: Any) -> str:
        names = {"model": model_name} | ({} if vq_name == AUTO else {"vq": vq_name})
        return " ".join(
            host.stamp(host.path_of(host.MODELS, name, kind)) for kind, name in names.items()
        )

    @classmethod
    def execute(cls, model_name: str, vq_name: str, weight_dtype: str) -> io.NodeOutput:
        checkpoint = host.load(host.path_of(host.MODELS, model_name, "model"), "model")
        if vq_name != AUTO:
            vq_path = host.path_of(host.MODELS, vq_name, "vq")
        elif model_name == host.SHIPPED:
            vq_path = host.SHIPPED_FILES["vq"]
        else:
            vq_path = checkpoint.path.parent
        vq = host.load(vq_path, "vq")
        if vq.config.num_codes != checkpoint.config.num_codes:
            raise ValueError(
                f"{vq.name} has {vq.config.num_codes} codes, but {checkpoint.name} makes "
                f"{checkpoint.config.num_codes}. Choose the VQ model that it was trained with in "
                "vq_name."
            )
        vae = CodeVAE(vq)
        latent_format = CodeIds(vq.config.downscale, vae.code_colours())
        return io.NodeOutput(build_model(checkpoint, weight_dtype, latent_format), vae)


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
            search_aliases=["migm shortcut", "accelerate", "speed up", "maskgit head"],
            inputs=[
                io.Combo.Input(
                    "head_name",
                    options=host.choices(host.HEADS),
                    default=host.SHIPPED,
                    tooltip="The shipped head for the shipped model, or a file in "
                    "models/migm_heads such as maskgit-shortcut.pth. The sampler refuses a head "
                    "of another model.",
                ),
                weight_dtype_input(),
            ],
            outputs=[
                Head.Output("head", display_name="head", tooltip="For the Shortcut Masked Sampler.")
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, head_name: str, **_: Any) -> str:
        return host.stamp(host.path_of(host.HEADS, head_name, "head"))

    @classmethod
    def execute(cls, head_name: str, weight_dtype: str) -> io.NodeOutput:
        checkpoint: weights.Checkpoint = host.load(
            host.path_of(host.HEADS, head_name, "head"), "head"
        )
        return io.NodeOutput(build_head(checkpoint, weight_dtype))
