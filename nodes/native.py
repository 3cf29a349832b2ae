"""ComfyUI's own types around our networks: MODEL, VAE, and the patcher that carries a shortcut head.

LATENT of a masked image model: code ids as float32 in one channel, (B, 1, rows, columns).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor

from ..shortcut import colours, quantized, weights
from ..shortcut.checkpoint import naming
from ..shortcut.grid import Grid
from .host import HostAttention, dtypes

MARGIN = 1.25  # of memory estimates, for what an allocator leaves unused and attention needs


class CodeIds(comfy.latent_formats.LatentFormat):
    """The latent format, with what previews need: the mean colour of each code."""

    latent_channels = 1

    def __init__(self, downscale: int = 8, colours_V3: Tensor | None = None):
        self.spacial_downscale_ratio = downscale
        self.colours_V3 = colours_V3


class ModelConfig(comfy.supported_models_base.BASE):
    """What ComfyUI's BaseModel asks for."""

    unet_extra_config: dict[str, Any] = {}  # noqa: RUF012 - the base class reads it so
    latent_format = CodeIds

    @classmethod
    def of(
        cls, checkpoint: weights.Checkpoint, weight_dtype: str, device: torch.device
    ) -> ModelConfig:
        """For the network of a checkpoint, whose arguments but layers and device are in `unet_config`.

        Raises:
            ValueError: the weights are float8, which the device cannot hold.
        """
        if quantized.COMPUTED.intersection(checkpoint.quantized.values()):
            with naming(checkpoint.path):
                quantized.check_device(device)
        dtype, cast = dtypes(weight_dtype, device, checkpoint)
        config = cls(
            {
                "config": checkpoint.config,
                "attention": HostAttention(),
                "compute_dtype": cast or dtype,
            }
        )
        config.set_inference_dtype(dtype, cast)
        config.quant_config = comfy.utils.detect_layer_quantization(checkpoint.tensors, "")
        return config


class MaskedImageModel(comfy.model_base.BaseModel):
    """A masked image model as ComfyUI's MODEL. `checkpoint` says what it is; it has no tensors.

    `tokenizer` is that of a model whose conditions are text.
    """

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device,
        checkpoint: weights.Checkpoint,
        tokenizer: Any,
    ):
        super().__init__(
            config,
            model_type=comfy.model_base.ModelType.FLOW,
            device=device,
            unet_model=checkpoint.format.network,
        )
        self.checkpoint, self.tokenizer = checkpoint.without_tensors(), tokenizer
        self.attention: HostAttention = config.unet_config["attention"]

    @contextlib.contextmanager
    def running(self, patcher: Any) -> Iterator[None]:
        """A run of the MODEL `patcher`, whose callbacks and attention overrides take effect in it."""
        patcher.pre_run()
        self.attention.options = patcher.model_options["transformer_options"]
        try:
            yield
        finally:
            self.attention.options = {}
            patcher.cleanup()

    def _apply_model(self, *args: Any, **kwargs: Any) -> Tensor:
        raise ValueError(
            "MODEL is a masked image model, which KSampler and other diffusion samplers cannot "
            "run. Use the Shortcut Masked Sampler in their place."
        )

    def memory_required(self, input_shape: Any, cond_shapes: Any = None) -> float:
        """Bytes of activations for latents of `input_shape`, without a prompt."""
        num_images, _, rows, columns = input_shape
        return self.activations(num_images, (rows, columns), [0])

    def activations(
        self, num_images: int, grid: Grid, prompt_lengths: Sequence[int], *, is_sequential=False
    ) -> float:
        """Bytes that a run needs beside the weights.

        Args:
            prompt_lengths: tokens of the condition of each guidance branch.
            is_sequential: True: a branch at a time.
        """
        config, itemsize = self.checkpoint.config, self.diffusion_model.compute_dtype.itemsize
        rows, columns = grid
        # As many as Lumina-DiMOO has; of other models some less.
        lengths = [length + rows * (columns + 1) + 4 for length in prompt_lengths]
        at_once = max(lengths) if is_sequential else sum(lengths)
        # What `python -m shortcut cost` finds alive at the peak of a block and of a draw of codes, and between them.
        block = at_once * (4 * config.width + 2 * config.mlp_width) * itemsize
        draw = 4 * rows * columns * config.num_codes * 4
        features = 2 * sum(lengths) * config.width * itemsize
        return MARGIN * num_images * (features + max(block, draw))


def model_of(patcher: Any) -> MaskedImageModel:
    """The masked image model that a MODEL carries. Raises ValueError if it carries another."""
    if not isinstance(patcher.model, MaskedImageModel):
        raise ValueError(
            f"MODEL is a {type(patcher.model).__name__}, expected a masked image model. Use Load "
            "MIGM."
        )
    return patcher.model


def build_model(
    checkpoint: weights.Checkpoint,
    weight_dtype: str,
    latent_format: CodeIds,
    tokenizer: Any = None,
) -> Any:
    """The MODEL of a checkpoint; `weight_dtype` is a choice of the loader."""
    device, offload_device = mm.get_torch_device(), mm.unet_offload_device()
    config = ModelConfig.of(checkpoint, weight_dtype, device)
    config.latent_format = latent_format
    model = MaskedImageModel(config, offload_device, checkpoint, tokenizer)
    patcher = comfy.model_patcher.CoreModelPatcher(model, device, offload_device)
    model.load_model_weights(dict(checkpoint.tensors), assign=patcher.is_dynamic())
    return patcher


def build_head(checkpoint: weights.Checkpoint, weight_dtype: str) -> Any:
    """A shortcut head in a patcher, as ComfyUI's caches expect of what holds weights."""
    device, offload_device = mm.get_torch_device(), mm.unet_offload_device()
    config = ModelConfig.of(checkpoint, weight_dtype, device)
    operations = comfy.ops.pick_operations(
        config.unet_config["dtype"], config.manual_cast_dtype, model_config=config
    )
    network = checkpoint.format.network
    head = network(**config.unet_config, device=offload_device, operations=operations).eval()
    mm.archive_model_dtypes(head)
    # Without values, but with the types that the file has, whatever they are in memory.
    head.checkpoint = replace(checkpoint, tensors=checkpoint.layout())
    patcher = comfy.model_patcher.CoreModelPatcher(head, device, offload_device)
    head.load_state_dict(dict(checkpoint.tensors), assign=patcher.is_dynamic())
    return patcher


class CodeLatents(torch.nn.Module):
    """A VQ model as ComfyUI's VAE calls it: latents are code ids as float32, (B, 1, rows, columns)."""

    def __init__(self, vq: torch.nn.Module):
        super().__init__()
        self.vq = vq

    def encode(self, pixels_BCYX: Tensor) -> Tensor:
        return self.vq.encode(pixels_BCYX).unsqueeze(1).float()

    def decode(self, latents_B1hw: Tensor) -> Tensor:
        codes_Bhw = latents_B1hw[:, 0].round().long()
        return self.vq.decode(codes_Bhw.clamp(0, self.vq.config.num_codes - 1))


def vq_memory(config: Any) -> tuple[Callable[..., float], Callable[..., float]]:
    """(shape of pixels, type) and (shape of latents, type) -> bytes that a VQ model needs in float32."""
    # Feature maps of the finest level: 6 are alive at the peak, the rest is for convolutions.
    per_pixel = 8 * config.channels * 4

    def for_encode(shape: Any, dtype: Any) -> float:
        return per_pixel * shape[2] * shape[3]

    def for_decode(shape: Any, dtype: Any) -> float:
        return per_pixel * shape[2] * shape[3] * config.downscale**2

    return for_encode, for_decode


class CodeVAE(comfy.sd.VAE):
    """A VQ model as ComfyUI's VAE."""

    def __init__(self, checkpoint: weights.Checkpoint):
        with _without_vae_warning():
            super().__init__(sd={})
        config = checkpoint.config
        self.latent_channels = 1
        self.downscale_ratio = self.upscale_ratio = config.downscale
        self.working_dtypes = [torch.float32]
        self.memory_used_encode, self.memory_used_decode = vq_memory(config)
        self.device, self.output_device = mm.vae_device(), mm.intermediate_device()
        self.vae_dtype = torch.float32  # whatever the command line says: ids do not survive less
        offload_device = mm.vae_offload_device()
        network = checkpoint.format.network(
            config,
            dtype=self.vae_dtype,
            device=offload_device,
            operations=comfy.ops.manual_cast,
            attention=HostAttention(),
        )
        self.first_stage_model = CodeLatents(network).eval()
        mm.archive_model_dtypes(self.first_stage_model)
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            self.first_stage_model, self.device, offload_device
        )
        network.load_state_dict(dict(checkpoint.tensors), assign=self.patcher.is_dynamic())
        self.checkpoint = checkpoint.without_tensors()
        # A copy: the module's own weight may lie anywhere, or nowhere yet.
        self.codebook_VC = checkpoint.tensors["quantize.embedding.weight"].float()

    def code_colours(self) -> Tensor:
        """The mean colour of each code, for previews: as the file states it, else estimated."""
        config, stated = self.checkpoint.config, self.checkpoint.metadata.code_colours
        if stated:
            return colours.from_text(stated, config.num_codes)
        return colours.estimated(self.codebook_VC, self._decode_codes)

    def _decode_codes(self, codes_Bhw: Tensor) -> Tensor:
        """RGB pixels (B, 3, Y, X) in [-1, 1]."""
        return self.decode(codes_Bhw.unsqueeze(1).float()).movedim(-1, 1) * 2 - 1

    def vae_output_dtype(self) -> torch.dtype:
        return torch.float32

    def encode(self, pixel_samples: Tensor) -> Tensor:
        """Code ids (B, 1, h, w) of IMAGEs (B, Y, X, C), cropped to whole codes by ComfyUI.

        Raises:
            ValueError: nothing would be left of them.
        """
        height, width = pixel_samples.shape[1:3]
        side = self.checkpoint.config.downscale
        if min(height, width) < side:
            raise ValueError(
                f"an image of {width} x {height} pixels is smaller than one code, expected at least {side} x {side}. "
                "Scale it up."
            )
        return super().encode(pixel_samples)

    def encode_tiled(self, pixel_samples: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As `encode`: ComfyUI would blend the ids where tiles overlap."""
        return self.encode(pixel_samples)

    def encode_tiled_(self, pixel_samples: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What ComfyUI does when `encode` ran out of memory, with the same blending."""
        size = " x ".join(map(str, pixel_samples.shape[:1:-1]))
        raise mm.OOM_EXCEPTION(
            f"Out of memory. An image of {size} pixels is too large for VAE Encode here. Scale it down."
        )


@contextlib.contextmanager
def _without_vae_warning() -> Iterator[None]:
    """Keeps ComfyUI from warning that a VAE has no weights: ours get theirs a moment later."""

    def is_wanted(record: logging.LogRecord) -> bool:
        return "No VAE weights detected" not in str(record.msg)

    logging.getLogger().addFilter(is_wanted)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(is_wanted)
