"""ComfyUI for the tests of the nodes: the real one, or stand-ins where there is none.

If the environment variable COMFY_DIR names a ComfyUI folder, `install` makes that one importable (on the CPU). Else it
installs stand-ins with just what the nodes use: enough to build their schemas and to run them on the CPU, not a copy
of ComfyUI's behaviour. Schemas take only the arguments that real releases take. Tests that need more are marked
`needs_comfy`.
"""

from __future__ import annotations

import enum
import os
import sys
import tempfile
import types
from functools import partial
from pathlib import Path
from typing import Any

import comfy_schema
import pytest
import torch

COMFY_DIR = os.environ.get("COMFY_DIR", "")
needs_comfy = pytest.mark.skipif(not COMFY_DIR, reason="COMFY_DIR names no ComfyUI folder")
SCHEMA = comfy_schema.common()
QUANT_ALGOS = ("float8_e4m3fn", "float8_e5m2", "nvfp4")  # of the oldest release
MODULES = (
    "comfy",
    "comfy.cli_args",
    "comfy.latent_formats",
    "comfy.ldm",
    "comfy.ldm.modules",
    "comfy.ldm.modules.attention",
    "comfy.lora",
    "comfy.model_base",
    "comfy.model_management",
    "comfy.model_patcher",
    "comfy.ops",
    "comfy.quant_ops",
    "comfy.sample",
    "comfy.sd",
    "comfy.sd1_clip",
    "comfy.supported_models_base",
    "comfy.utils",
    "comfy_api",
    "comfy_api.latest",
    "comfy_execution",
    "comfy_execution.utils",
    "folder_paths",
)


def install() -> None:
    """Makes `comfy`, `comfy_api` and `folder_paths` importable."""
    if "comfy" in sys.modules:
        return
    if COMFY_DIR:
        if not (Path(COMFY_DIR) / "comfy").is_dir():
            raise FileNotFoundError(f"COMFY_DIR is {COMFY_DIR}, expected a ComfyUI folder.")
        sys.path.insert(0, COMFY_DIR)
        # Before anything else of ComfyUI is imported: it looks for a GPU at import time.
        from comfy.cli_args import args

        args.cpu = True
        return
    for name in MODULES:
        module = sys.modules[name] = types.ModuleType(name)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    for name, content in _contents().items():
        vars(sys.modules[name]).update(content)


class Field:
    """An input or output of a schema, made as `constructor` is in every recorded release (see comfy_schema.py)."""

    def __init__(self, io_type: str, constructor: str, id: str, **options: Any):
        SCHEMA.check(constructor, {"id", *options})
        self.io_type, self.id, self.options = io_type, id, options
        self.optional = options.pop("optional", False)
        self.tooltip = options.get("tooltip")
        self.display_name = options.get("display_name")

    def get_io_type(self) -> str:
        return self.io_type

    def as_dict(self) -> dict[str, Any]:
        listed = self.options.get("options", [])
        made = [o.as_dict() if isinstance(o, Option) else o for o in listed]
        return self.options | ({"options": made} if listed else {})


class Option:
    """A choice of a DynamicCombo, with the inputs that it brings."""

    def __init__(self, key: str, inputs: list[Field]):
        self.key, self.inputs = key, inputs

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"required": {}}
        for item in self.inputs:
            group = found.setdefault("optional" if item.optional else "required", {})
            group[item.id] = (item.io_type, item.as_dict())
        return {"key": self.key, "inputs": found}


def io_type(io_type: str, **constructors: str) -> Any:
    """A type of sockets or widgets."""
    made: dict[str, Any] = {
        name: Option if name == "Option" else partial(Field, io_type, found)
        for name, found in constructors.items()
    }
    return types.SimpleNamespace(io_type=io_type, **made)


class CLIP:
    """Keeps what it is made of."""

    def __init__(self, target: Any, embedding_directory: Any, parameters: int, state_dict: Any):
        self.target, self.parameters, (self.tensors,) = target, parameters, state_dict


class SDTokenizer:
    """Knows no words."""

    start_token, end_token = 0, 1
    tokenizer = types.SimpleNamespace(pad_token_id=1, get_vocab=dict)

    def __init__(self, **options: Any):
        self.options = options


class Schema(types.SimpleNamespace):
    def __init__(self, **options: Any):
        SCHEMA.check("Schema", options)
        super().__init__(**options)


class NodeOutput:
    def __init__(self, *result: Any, **options: Any):
        SCHEMA.check("NodeOutput", options)
        self.result = result


def io() -> Any:
    """comfy_api.latest.io, with what every recorded release has."""
    return types.SimpleNamespace(
        **{name: io_type(**found) for name, found in SCHEMA.types.items()},
        Custom=partial(io_type, Input="Input", Output="Output"),
        ComfyNode=object,
        NodeOutput=NodeOutput,
        Schema=Schema,
    )


class ComfyExtension:
    async def on_load(self) -> None: ...


class PreviewMethod(enum.Enum):
    """comfy.cli_args.LatentPreviewMethod"""

    NoPreviews = "none"
    Auto = "auto"


class LatentFormat:
    spacial_downscale_ratio = 8


class ModelConfig:
    """comfy.supported_models_base.BASE"""

    def __init__(self, unet_config: dict[str, Any]):
        self.unet_config = dict(unet_config)

    def set_inference_dtype(self, dtype: torch.dtype, cast: torch.dtype | None) -> None:
        self.unet_config["dtype"], self.manual_cast_dtype = dtype, cast


class BaseModel(torch.nn.Module):
    """comfy.model_base.BaseModel"""

    def __init__(self, config: Any, model_type: Any, device: Any, unet_model: Any):
        super().__init__()
        operations = _pick_operations(model_config=config)
        self.diffusion_model = unet_model(
            **config.unet_config, device=device, operations=operations
        )
        self.latent_format = config.latent_format

    def load_model_weights(self, tensors: dict[str, Any], assign: bool) -> None:
        self.diffusion_model.load_state_dict(tensors, assign=True)  # as quantized ones ask for


class Patcher:
    """comfy.model_patcher.CoreModelPatcher"""

    def __init__(self, model: Any, load_device: torch.device, offload_device: torch.device):
        self.model, self.load_device = model, load_device
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.object_patches: dict[str, Any] = {}
        self.patches: dict[str, Any] = {}
        self.callbacks: dict[str, Any] = {}
        self.wrappers: dict[str, Any] = {}
        self.additional_models: dict[str, list[Any]] = {}

    def set_additional_models(self, key: str, models: list[Any]) -> None:
        self.additional_models[key] = models

    def get_additional_models_with_key(self, key: str) -> list[Any]:
        return self.additional_models.get(key, [])

    def match_multigpu_clones(self) -> None: ...

    def is_dynamic(self) -> bool:
        return False

    def get_model_object(self, name: str) -> Any:
        return getattr(self.model, name)

    def get_free_memory(self, device: torch.device) -> float:
        return 2.0**40

    def model_size(self) -> int:
        return sum(tensor.nbytes for tensor in self.model.state_dict().values())

    def pre_run(self) -> None: ...

    def cleanup(self) -> None: ...


class VAE:
    """comfy.sd.VAE"""

    def __init__(self, sd: dict[str, Any]):
        assert sd == {}

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            pixels = self.first_stage_model.decode(samples)
        return ((pixels + 1) / 2).clamp(0, 1).movedim(1, -1)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.first_stage_model.encode(pixels.movedim(-1, 1) * 2 - 1)


class ProgressBar:
    def __init__(self, total: int): ...

    def update_absolute(self, value: int, total: int, preview: Any = None) -> None: ...


def _contents() -> dict[str, dict[str, Any]]:
    """What the stand-ins hold, by module."""
    from shortcut_pack.shortcut.models.layers import sdpa

    cpu = torch.device("cpu")
    models_dir = tempfile.gettempdir()

    def attention(q, k, v, num_heads, transformer_options):
        return sdpa(q, k, v, num_heads)

    def repeat_to_batch_size(tensor, size):
        return tensor.repeat(size, *[1] * (tensor.ndim - 1))[:size]

    return {
        "comfy.cli_args": {
            "LatentPreviewMethod": PreviewMethod,
            "args": types.SimpleNamespace(preview_method=PreviewMethod.NoPreviews),
        },
        "comfy.latent_formats": {"LatentFormat": LatentFormat},
        "comfy.ldm.modules.attention": {"optimized_attention": attention},
        "comfy.model_base": {
            "BaseModel": BaseModel,
            "ModelType": types.SimpleNamespace(FLOW=0),
        },
        "comfy.model_management": {
            **dict.fromkeys(
                (
                    "get_torch_device",
                    "unet_offload_device",
                    "intermediate_device",
                    "vae_device",
                    "vae_offload_device",
                ),
                lambda: cpu,
            ),
            "unet_dtype": lambda *_: torch.float32,
            "unet_manual_cast": lambda *_: None,
            "archive_model_dtypes": lambda _: None,
            "get_total_memory": lambda _: 2.0**40,
            "load_models_gpu": lambda *_, **__: None,
            "throw_exception_if_processing_interrupted": lambda: None,
            "OOM_EXCEPTION": torch.OutOfMemoryError,
            "is_oom": lambda error: isinstance(error, torch.OutOfMemoryError),
        },
        "comfy.model_patcher": {"CoreModelPatcher": Patcher},
        "comfy.lora": {"model_lora_keys_unet": None, "load_lora": None},
        "comfy.quant_ops": {"QUANT_ALGOS": dict.fromkeys(QUANT_ALGOS)},
        "comfy.ops": {
            "manual_cast": (plain := _operations()),
            "mixed_precision_ops": lambda: (
                plain
            ),  # as before 0.28: embeddings of plain weights only
            "pick_operations": _pick_operations,
        },
        "comfy.sample": {"fix_empty_latent_channels": lambda model, samples, _: samples},
        "comfy.sd": {"VAE": VAE, "CLIP": CLIP},
        "comfy.sd1_clip": {
            **dict.fromkeys(("SDClipModel", "SD1ClipModel", "SD1Tokenizer"), object),
            "SDTokenizer": SDTokenizer,
        },
        "comfy.supported_models_base": {"BASE": ModelConfig},
        "comfy.utils": {
            "ProgressBar": ProgressBar,
            "repeat_to_batch_size": repeat_to_batch_size,
            "load_torch_file": _load_safetensors,
            "detect_layer_quantization": _detect_layer_quantization,
        },
        "comfy_execution.utils": {"get_executing_context": lambda: None},
        "comfy_api.latest": {"ComfyExtension": ComfyExtension, "io": io()},
        "folder_paths": {
            "models_dir": models_dir,
            "get_output_directory": lambda: models_dir,
            "get_save_image_path": _get_save_image_path,
            "folder_names_and_paths": {},
            "add_model_folder_path": _add_model_folder_path,
            "get_filename_list": lambda category: [],
            "get_folder_paths": _get_folder_paths,
            "get_full_path": lambda category, name: None,
            "get_full_path_or_raise": lambda category, name: str(Path(models_dir, category, name)),
        },
    }


def _load_safetensors(path: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _operations() -> Any:
    from shortcut_pack.shortcut.models.layout import Bare

    class Operations(Bare):
        """comfy.ops.disable_weight_init"""

        class Linear(Bare.Linear):
            weight_function: tuple[Any, ...] = ()

            def forward(self, input: torch.Tensor) -> torch.Tensor:
                weight = self.weight
                for function in self.weight_function:
                    weight = function(weight)
                return torch.nn.functional.linear(input, weight, self.bias)

    return Operations


def _pick_operations(*_: Any, model_config: Any) -> Any:
    from shortcut_pack.shortcut.quantized import Operations

    return Operations if model_config.quant_config else _operations()


def _detect_layer_quantization(tensors: dict[str, Any], prefix: str) -> dict[str, bool] | None:
    is_quantized = any(name.endswith(".comfy_quant") for name in tensors)
    return {"mixed_ops": True} if is_quantized else None


def _get_folder_paths(category: str) -> list[str]:
    return sys.modules["folder_paths"].folder_names_and_paths.get(category, ([], set()))[0]


def _add_model_folder_path(name: str, path: str) -> None:
    folders = sys.modules["folder_paths"].folder_names_and_paths
    folders.setdefault(name, ([], set()))[0].append(path)


def _get_save_image_path(prefix: str, output_dir: str) -> tuple[str, str, int]:
    path = Path(output_dir, prefix)
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = [int(found.stem.split("_")[-2]) for found in path.parent.glob(f"{path.name}_*_.*")]
    return str(path.parent), path.name, max(numbers, default=0) + 1
