"""ComfyUI's own types around our networks: MODEL, VAE, and the patcher that carries a shortcut head.

LATENT of a masked image model: code ids as float32 in one channel, (B, 1, rows, columns).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

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

from ..shortcut import checkpoint as checkpoints
from ..shortcut import colours, companions
from ..shortcut.checkpoint import Checkpoint, metadata_of, naming
from ..shortcut.denoiser import Conditions
from ..shortcut.models import bands
from ..shortcut.models.architecture import (
    Conditioner,
    Grid,
    HeadNetwork,
    ModelNetwork,
    VQConfig,
    VQNetwork,
)
from ..shortcut.unwrap import SAVED, metadata_tensor
from .host import HostAttention, check_formats, check_held, dtypes, in_order_of
from .latents import check_form, check_type, codes_of

MARGIN = 1.25  # of memory estimates, for what an allocator leaves unused and attention needs


class CodeIds(comfy.latent_formats.LatentFormat):
    """The latent format, with what previews need: the mean colour of each code."""

    latent_channels = 1

    def __init__(self, downscale: int = 8, colours_V3: Tensor | None = None):
        self.spacial_downscale_ratio = downscale
        self.colours_V3 = colours_V3


class ModelConfig(comfy.supported_models_base.BASE):
    """The configuration that ComfyUI's BaseModel reads."""

    unet_extra_config: dict[str, Any] = {}  # noqa: RUF012 - the base class reads it so
    latent_format: Any = CodeIds  # that of a model is an instance

    @classmethod
    def of(cls, checkpoint: Checkpoint, weight_dtype: str, device: torch.device) -> ModelConfig:
        """Make the configuration of a checkpoint; `unet_config` holds its network's arguments but layers and device.

        Raises:
            ValueError: the weights are float8, which the device cannot hold, or in a format that this ComfyUI does not
                know.
        """
        with naming(checkpoint.path):
            check_formats(set(checkpoint.quantized.values()))
            check_held(device, checkpoint.tensors.values())
        dtype, cast_to = dtypes(weight_dtype, device, checkpoint)
        config = cls(
            {
                "config": checkpoint.config,
                "attention": HostAttention(),
                "compute_dtype": cast_to or dtype,
            }
        )
        config.set_inference_dtype(dtype, cast_to)
        config.quant_config = comfy.utils.detect_layer_quantization(checkpoint.tensors, "")
        return config


class MaskedImageModel(comfy.model_base.BaseModel):
    """A masked image model as ComfyUI's MODEL. `checkpoint` says what it is; it has no tensors."""

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device,
        checkpoint: Checkpoint,
        conditioner: Conditioner,
    ):
        super().__init__(
            config,
            model_type=comfy.model_base.ModelType.FLOW,
            device=device,
            unet_model=checkpoint.layout.network,
        )
        config.unet_config["model_channels"] = (
            checkpoint.config.width
        )  # FreeU and HyperTile ask for it
        self.checkpoint, self.conditioner = checkpoint.without_tensors(), conditioner
        self.attention: HostAttention = config.unet_config["attention"]

    def state_dict_for_saving(self, unet_state_dict: Any, *others: Any, **named: Any) -> Any:
        """Return what Save Model writes, with our metadata and the tokenizer, which the node would lose."""
        unet_state_dict[SAVED] = metadata_tensor(metadata_of(self.checkpoint))
        try:
            unet_state_dict.update(companions.packed(self.checkpoint))
        except OSError as error:
            logging.warning("The saved model has no companions: %s", error)
        return super().state_dict_for_saving(unet_state_dict, *others, **named)

    @property
    def network(self) -> ModelNetwork:
        """The model itself."""
        return self.diffusion_model

    @contextlib.contextmanager
    def running(self, patcher: Any) -> Iterator[None]:
        """Open a run of the MODEL `patcher`, in which its callbacks and attention overrides take effect."""
        patcher.pre_run()
        self.attention.options = patcher.model_options["transformer_options"]
        self.network.in_order = in_order_of(patcher)
        try:
            yield
        finally:
            self.attention.options, self.network.in_order = {}, iter
            patcher.cleanup()

    def _apply_model(self, *args: Any, **kwargs: Any) -> Tensor:
        raise ValueError(
            "MODEL is a masked image model, which KSampler and other diffusion samplers cannot "
            "run. Use the Shortcut Masked Sampler in their place."
        )

    def memory_required(self, input_shape: Any, cond_shapes: Any = None) -> float:
        """Return the bytes of a run with the shortest condition; 0 for latents that the model does not make."""
        with contextlib.suppress(ValueError):
            num_images, _, rows, columns = input_shape
            return self.run_bytes((rows, columns), num_images, [None])
        return 0.0

    def run_bytes(
        self,
        grid: Grid,
        num_images: int,
        conditions: Sequence[Conditions | None],
        *,
        is_sequential: bool = False,
    ) -> float:
        """Return the bytes that a run needs above the weights.

        Args:
            conditions: one for each guidance branch; None = the shortest.
            is_sequential: True: one branch at a time.
        """
        model = self.network.on_grid(*grid, is_sequential=is_sequential)
        lengths = [model.sequence_length(condition) for condition in conditions]
        return MARGIN * model.activation_bytes(num_images, lengths)


def model_of(patcher: Any) -> MaskedImageModel:
    """Return the masked image model that a MODEL carries. Raise ValueError if it carries another."""
    if not isinstance(patcher.model, MaskedImageModel):
        raise ValueError(
            f"MODEL is a {type(patcher.model).__name__}, expected a masked image model. Use Load "
            "MIGM."
        )
    return patcher.model


def build_model(
    checkpoint: Checkpoint,
    weight_dtype: str,
    latent_format: CodeIds,
    conditioner: Conditioner,
    *,
    disable_dynamic: bool = False,
) -> Any:
    """Build the MODEL of a checkpoint.

    Args:
        weight_dtype: a choice of the loader.
        disable_dynamic: True: without ComfyUI's dynamic loading.
    """
    device, offload_device = mm.get_torch_device(), mm.unet_offload_device()
    config = ModelConfig.of(checkpoint, weight_dtype, device)
    config.latent_format = latent_format
    model = MaskedImageModel(config, offload_device, checkpoint, conditioner)
    kind = "ModelPatcher" if disable_dynamic else "CoreModelPatcher"
    patcher = getattr(comfy.model_patcher, kind)(model, device, offload_device)
    with naming(checkpoint.path):
        model.load_model_weights(dict(checkpoint.tensors), assign=patcher.is_dynamic())
    return patcher


def build_head(checkpoint: Checkpoint, weight_dtype: str) -> Any:
    """Build a shortcut head in a patcher, as ComfyUI's caches expect of what holds weights."""
    device, offload_device = mm.get_torch_device(), mm.unet_offload_device()
    config = ModelConfig.of(checkpoint, weight_dtype, device)
    operations = comfy.ops.pick_operations(
        config.unet_config["dtype"], config.manual_cast_dtype, model_config=config
    )
    network = checkpoint.layout.network
    head = network(**config.unet_config, device=offload_device, operations=operations).eval()
    mm.archive_model_dtypes(head)
    # Without values, but with the types that the file has, whatever they are in memory.
    head.checkpoint = replace(checkpoint, tensors=checkpoint.shapes())
    head.weight_dtype, head.for_model = weight_dtype, None
    patcher = comfy.model_patcher.CoreModelPatcher(head, device, offload_device)
    with naming(checkpoint.path):
        head.load_state_dict(dict(checkpoint.tensors), assign=patcher.is_dynamic())
    return patcher


def head_of(patcher: Any) -> tuple[HeadNetwork, Checkpoint]:
    """Return the shortcut head that a SHORTCUT_HEAD carries, and its description without values."""
    return patcher.model, patcher.model.checkpoint


def fitted_head(patcher: Any, model: Checkpoint) -> Any:
    """Return a SHORTCUT_HEAD for a model, from which it takes what its own file does not state.

    Load Shortcut Head does not know the model. Where the model has other values than it assumed, the file is read again
    once for each model.

    Raises:
        FileNotFoundError, ValueError: as `checkpoint.load`.
    """
    network, head = patcher.model, patcher.model.checkpoint
    wanted = {name: getattr(model.config, name, None) for name in head.assumed}
    is_same = all(value in (None, getattr(head.config, name)) for name, value in wanted.items())
    if is_same or head.path is None or head.layout != model.architecture.head:
        return patcher
    if network.for_model is None or network.for_model[0] != wanted:
        again = checkpoints.load(head.path, "head", model=model)
        network.for_model = wanted, build_head(again, network.weight_dtype)
    return network.for_model[1]


class CodeLatents(torch.nn.Module):
    """A VQ model as ComfyUI's VAE calls it: latents are code ids as float32, (B, 1, rows, columns)."""

    def __init__(self, vq: VQNetwork, num_codes: int):
        super().__init__()
        self.vq, self.num_codes = vq, num_codes

    def encode(self, pixels_BCYX: Tensor) -> Tensor:
        return self.vq.encode(pixels_BCYX).unsqueeze(1).float()

    def decode(self, latents_B1hw: Tensor) -> Tensor:
        codes_BL = codes_of(latents_B1hw, self.num_codes)
        return self.vq.decode(codes_BL.unflatten(1, latents_B1hw.shape[2:]))


def vq_memory(config: VQConfig) -> tuple[Callable[..., float], Callable[..., float]]:
    """Return two functions, (shape of pixels, type) and (shape of latents, type) -> bytes of a VQ model in float32."""

    def for_pixels(num_pixels: int) -> float:
        # Feature maps of the finest level: 5 are alive at the peak, 3.4 in bands; the rest is for convolutions.
        size = num_pixels * config.channels
        return 4 * (4 if size >= bands.LARGE else 7) * size

    def for_encode(shape: Any, dtype: Any) -> float:
        return for_pixels(shape[2] * shape[3])

    def for_decode(shape: Any, dtype: Any) -> float:
        return for_pixels(shape[2] * shape[3] * config.downscale**2)

    return for_encode, for_decode


class CodeVAE(comfy.sd.VAE):
    """A VQ model as ComfyUI's VAE."""

    def __init__(self, checkpoint: Checkpoint):
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
        network = checkpoint.layout.network(
            config,
            dtype=self.vae_dtype,
            device=offload_device,
            operations=comfy.ops.manual_cast,
            attention=HostAttention(),
        )
        self.first_stage_model = CodeLatents(cast(VQNetwork, network), config.num_codes).eval()
        mm.archive_model_dtypes(self.first_stage_model)
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            self.first_stage_model, self.device, offload_device
        )
        tensors, assign = dict(checkpoint.tensors), self.patcher.is_dynamic()
        network.load_state_dict(tensors, strict=True, assign=assign)
        self.checkpoint = checkpoint.without_tensors()
        # A copy: the module's own weight may lie anywhere, or nowhere yet.
        self.codebook_VC: Tensor | None = None
        if name := checkpoint.layout.codebook:
            self.codebook_VC = checkpoint.tensors[name].float()

    def code_colours(self) -> Tensor:
        """Return the mean colour (V, 3) of each code, for previews: as the file states it, else estimated.

        Without a codebook to estimate from, all are grey.
        """
        num_codes, stated = self.checkpoint.config.num_codes, self.checkpoint.metadata.code_colours
        if stated:
            return colours.from_text(stated, num_codes)
        if self.codebook_VC is None:
            return torch.zeros(num_codes, 3)
        return colours.estimated(self.codebook_VC, self._decode_codes)

    def get_sd(self) -> dict[str, Any]:
        """Return what VAESave writes, with our metadata, which the node would lose."""
        return {
            **super().get_sd(),
            f"vq.{SAVED}": metadata_tensor(metadata_of(self.checkpoint)),
        }

    def _decode_codes(self, codes_Bhw: Tensor) -> Tensor:
        """Return RGB pixels (B, 3, Y, X) in [-1, 1]."""
        return self.decode(codes_Bhw.unsqueeze(1).float()).movedim(-1, 1) * 2 - 1

    def vae_output_dtype(self) -> torch.dtype:
        return torch.float32

    def encode(self, pixel_samples: Tensor) -> Tensor:
        """Return code ids (B, 1, h, w) of IMAGEs (B, Y, X, C), cropped to whole codes by ComfyUI.

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

    def decode(self, samples_in: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return IMAGEs of code ids (B, 1, h, w). Raise ValueError if they are none."""
        self._check(samples_in)
        return super().decode(samples_in, *args, **kwargs)

    def decode_tiled(self, samples: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Do as `decode`, in tiles."""
        self._check(samples)
        return super().decode_tiled(samples, *args, **kwargs)

    def _check(self, samples: Tensor) -> None:
        """Raise ValueError for what ComfyUI would change before the network sees it."""
        check_form(samples)
        check_type(samples, self.checkpoint.config.num_codes)

    def encode_tiled(self, pixel_samples: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Do as `encode`: ComfyUI would blend the ids where tiles overlap."""
        return self.encode(pixel_samples)

    def encode_tiled_(self, pixel_samples: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Raise an error: ComfyUI comes here when `encode` ran out of memory, and would blend the ids."""
        size = " x ".join(map(str, pixel_samples.shape[:1:-1]))
        raise mm.OOM_EXCEPTION(
            f"Out of memory. An image of {size} pixels is too large for VAE Encode here. Scale it down."
        )


@contextlib.contextmanager
def _without_vae_warning() -> Iterator[None]:
    """Keep ComfyUI from warning that a VAE has no weights: ours get theirs a moment later."""

    def is_wanted(record: logging.LogRecord) -> bool:
        return "No VAE weights detected" not in str(record.msg)

    logging.getLogger().addFilter(is_wanted)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(is_wanted)
