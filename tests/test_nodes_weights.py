"""Weights in the forms that ComfyUI reads and writes, by way of its own nodes and loaders.

They run on stand-ins for ComfyUI, and on the real one if COMFY_DIR names its folder (see comfy_stubs.py).
"""

# ruff: noqa: E402 - ComfyUI, or what stands in for it, must be importable first
# ruff: noqa: F811 - fixtures are imported and then named as arguments

from __future__ import annotations

import json
from dataclasses import asdict, replace

import builders
import comfy_stubs
import pytest
import torch
from builders import assert_same
from comfy_stubs import needs_comfy
from safetensors.torch import save_file

comfy_stubs.install()
import comfy.quant_ops
import folder_paths
from shortcut_pack.nodes import host, native
from shortcut_pack.nodes.load import FLOAT8_E4M3, LoadHead, LoadMIGM
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut import kitchen, quantized
from text_nodes import class_model, conditioner, files, model, put, run, vae  # noqa: F401

LAYER = "blocks.1.feed_forward.up"
FLOAT8 = torch.float8_e4m3fn


def mark(format: str) -> torch.Tensor:
    return torch.tensor(
        list(json.dumps({"format": format, "convrot_groupsize": 16}).encode()), dtype=torch.uint8
    )


def strings(checkpoint: checkpoints.Checkpoint) -> dict[str, str]:
    return {
        "shortcut.format": checkpoint.layout.name,
        "shortcut.version": "1",
        "shortcut.config": json.dumps(asdict(checkpoint.config)),
        "shortcut.grid": "[4, 4]",
    }


@pytest.mark.parametrize("can_look_up", [False, True])
def test_embeddings_are_float8_where_comfyui_looks_float8_up(files, monkeypatch, can_look_up):
    put(files)
    monkeypatch.setattr(host, "looks_up_float8", lambda: can_look_up)
    skip_unknown("nvfp4")
    found = LoadMIGM.execute("tiny.safetensors", "auto", "nvfp4").result[0].model.checkpoint
    assert ("token.weight" in found.quantized) == can_look_up


# ------------------------------------------------------------------------------------------- float8 of others


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("choice", ["default", "float8_e4m3fn", "float32"])
def test_a_plain_cast_to_float8_runs(files, dtype, choice):
    exact = builders.text_model()
    narrow = {
        k: v.to(dtype) if "blocks" in k and v.ndim == 2 else v for k, v in exact.tensors.items()
    }
    file = put(files)
    save_file(narrow, file, metadata=strings(exact))
    found = LoadMIGM.execute("tiny.safetensors", "auto", choice).result[0]
    wide = {name: tensor.float() for name, tensor in narrow.items()}
    save_file(wide, file, metadata=strings(exact))
    expected = LoadMIGM.execute("tiny.safetensors", "auto", "float32").result[0]
    if choice == "float32":
        assert torch.equal(run(found)["samples"], run(expected)["samples"])
    assert run(found)["samples"].isfinite().all()
    weight = found.model.diffusion_model.get_submodule(LAYER).weight
    assert getattr(weight, "_qdata", weight).dtype == dtype
    assert found.model.diffusion_model.dtype not in quantized.FLOAT8


@pytest.mark.parametrize("is_older", [True, False])
def test_float8_as_comfyui_documents_it_is_the_same_model(files, is_older):
    file = put(files)
    checkpoints.save(file, builders.text_model(), dtype=FLOAT8)
    expected = run(LoadMIGM.execute("tiny.safetensors", "auto", "float32").result[0])["samples"]
    raw, metadata = checkpoints.read(file)
    end = ".comfy_quant"
    layers = {
        k.removesuffix(end): json.loads(bytes(v.tolist())) for k, v in raw.items() if end in k
    }
    rest = {k: v.clone() for k, v in raw.items() if end not in k}
    if is_older:
        rest = {k.replace("weight_scale", "scale_weight"): v for k, v in rest.items()}
        rest["scaled_fp8"] = torch.zeros(2, dtype=FLOAT8)
    else:
        metadata = {**metadata, "_quantization_metadata": json.dumps({"layers": layers})}
    save_file(rest, file, metadata=dict(metadata))
    found = LoadMIGM.execute("tiny.safetensors", "auto", "float32").result[0]
    assert torch.equal(run(found)["samples"], expected)


@pytest.mark.parametrize(
    ("format", "stored"),
    [
        ("int8_tensorwise", {"weight": torch.zeros(48, 32, dtype=torch.int8)}),
        (
            "asym_w4a8_int8",
            {
                "weight": torch.zeros(48, 16, dtype=torch.int8),
                "weight_s_rel": torch.ones(48, 2).to(FLOAT8),
                "weight_s_channel": torch.ones(48),
            },
        ),
        (
            "awq_w4a16",
            {
                "weight": torch.zeros(48, 16, dtype=torch.int8),
                "weight_zeros": torch.zeros(1, 48),
            },
        ),
    ],
)
def test_a_format_that_this_comfyui_does_not_know_is_the_reason(files, format, stored):
    file, exact = put(files), builders.text_model()
    raw = {k: v for k, v in exact.tensors.items() if not k.startswith(f"{LAYER}.")}
    scale = {} if format.startswith("asym") else {"weight_scale": torch.ones(1)}
    stored = {**stored, **scale, "comfy_quant": mark(format)}
    raw |= {f"{LAYER}.{name}": value for name, value in stored.items()}
    save_file(raw, file, metadata=strings(exact))
    if format in comfy.quant_ops.QUANT_ALGOS:
        found = LoadMIGM.execute("tiny.safetensors", "auto", "float32").result[0]
        assert found.model.checkpoint.quantized == {f"{LAYER}.weight": format}
        layer = found.model.diffusion_model.get_submodule(LAYER)
        assert layer.weight.shape == (48, 32)
        return
    match = rf"tiny.safetensors: .* {format}, and this ComfyUI does not know the format: it knows .*float8"
    with pytest.raises(ValueError, match=match):
        LoadMIGM.execute("tiny.safetensors", "auto", "float32")


# ------------------------------------------------------------------------------------------- int8 and 4 bits


def skip_unknown(choice: str) -> None:
    """Skip a test of a format that this ComfyUI does not know."""
    if kitchen.FORMATS.get(choice, FLOAT8_E4M3) not in comfy.quant_ops.QUANT_ALGOS:
        pytest.skip(f"this ComfyUI does not know {choice}")


@pytest.mark.parametrize("choice", kitchen.FORMATS)
def test_small_weights_are_made_on_loading_or_taken_from_a_file(files, choice):
    file = put(files)
    if kitchen.FORMATS[choice] not in comfy.quant_ops.QUANT_ALGOS:
        with pytest.raises(
            ValueError,
            match=rf"tiny.* {kitchen.FORMATS[choice]}, .*this ComfyUI does not know the format",
        ):
            LoadMIGM.execute("tiny.safetensors", "auto", choice)
        return
    chosen = LoadMIGM.execute("tiny.safetensors", "auto", choice).result[0]
    checkpoints.save(file, builders.text_model(), dtype=choice)
    for again in ("default", choice):
        read = LoadMIGM.execute("tiny.safetensors", "auto", again).result[0]
        assert torch.equal(run(read)["samples"], run(chosen)["samples"])
    layer = chosen.model.diffusion_model.get_submodule("blocks.0.feed_forward.up")
    assert getattr(layer.weight, "_qdata", layer.weight).dtype in (torch.int8, torch.uint8)


@pytest.mark.parametrize("choice", kitchen.FORMATS)
def test_small_weights_are_computed_as_on_the_command_line(files, choice):
    skip_unknown(choice)
    checkpoints.save(put(files), builders.text_model(), dtype=choice)
    found = LoadMIGM.execute("tiny.safetensors", "auto", "float32").result[0]
    file = checkpoints.load(files / "migm" / "tiny.safetensors")
    networks = found.model.diffusion_model, checkpoints.build(file, dtype=torch.float32)
    exact = checkpoints.build(builders.text_model())
    tokens_BS = torch.arange(22).reshape(2, 11)
    with torch.inference_mode():
        ours, theirs, wanted = (network([tokens_BS])[0] for network in (*networks, exact))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (ours - wanted).abs().max() > 0.01, "float32 would have passed as well"


# ------------------------------------------------------------------------------------------- saved by ComfyUI


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """The folder that ComfyUI's nodes save in."""
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    return tmp_path / "output"


@needs_comfy
@pytest.mark.parametrize("choice", ["float32", "bfloat16", *quantized.TARGETS])
def test_what_save_model_writes_loads_again(files, saved, choice):
    from comfy_extras.nodes_model_merging import ModelSave

    put(files)
    skip_unknown(choice)
    model = LoadMIGM.execute("tiny.safetensors", "auto", choice).result[0]
    expected = run(model)["samples"]
    ModelSave().save(model, "models/again", prompt={"a": 1}, extra_pnginfo={"workflow": {}})
    (written,) = saved.rglob("*.safetensors")
    written.rename(files / "migm" / "again.safetensors")
    found = LoadMIGM.execute("again.safetensors", "auto", choice).result[0]
    before, after = model.model.checkpoint, found.model.checkpoint
    assert (after.config, after.metadata) == (before.config, before.metadata)
    assert (after.fingerprint, after.quantized) == (before.fingerprint, before.quantized)
    assert torch.equal(run(found)["samples"], expected)


@needs_comfy
def test_what_vae_save_writes_loads_again(files, saved, vae):
    from comfy_extras.nodes_model_merging import VAESave

    put(files, vq=False)
    vq = builders.vq(code_colours="102030" * 16)
    VAESave().save(native.CodeVAE(vq), "vae/again")
    (written,) = saved.rglob("*.safetensors")
    target = files / "migm" / "again.safetensors"
    written.rename(target)
    assert_same(checkpoints.load(target, "vq"), vq)
    for choice in ("again.safetensors", "auto"):
        found = LoadMIGM.execute("tiny.safetensors", choice, "float32").result[1]
        assert found.checkpoint.metadata.code_colours == vq.metadata.code_colours
        latents = torch.arange(16.0).reshape(1, 1, 4, 4)
        assert torch.equal(found.decode(latents), native.CodeVAE(vq).decode(latents))


@needs_comfy
def test_what_save_checkpoint_writes_holds_both(files, saved, vae):
    import comfy.sd

    put(files)
    model = LoadMIGM.execute("tiny.safetensors", "auto", "float32").result[0]
    path = files / "migm" / "both.safetensors"
    comfy.sd.save_checkpoint(str(path), model, vae=vae, metadata={"prompt": "{}"})
    found, its_vae, _ = LoadMIGM.execute("both.safetensors", "both.safetensors", "float32").result
    assert torch.equal(run(found)["samples"], run(model)["samples"])
    assert its_vae.checkpoint.fingerprint == vae.checkpoint.fingerprint


# ------------------------------------------------------------------------------------------- heads


def head_layout_with(monkeypatch, num_heads):
    """Lets the width of the tiny heads have a preset, as that of the published ones has."""
    from shortcut_pack.shortcut.models.lumina_dimoo import head

    monkeypatch.setitem(head.NUM_HEADS, 32, num_heads)


def test_the_sampler_gives_a_head_what_its_model_says(files, conditioner, monkeypatch):
    head_layout_with(monkeypatch, 8)
    base = builders.text_model(replace(builders.TEXT_CONFIG, rope_theta=777.0))
    put(files, checkpoint=base)
    builders.write(files / "migm_heads" / "dimoo-shortcut.pth", builders.text_head())
    model = LoadMIGM.execute("tiny.safetensors", "auto", "float32").result[0]
    head = LoadHead.execute("dimoo-shortcut.pth", "float32").result[0]
    assert head.model.config.num_heads == 8 and head.model.config.rope_theta == 500_000.0
    fitted = native.fitted_head(head, model.model.checkpoint)
    assert fitted.model.config == replace(builders.TEXT_HEAD_CONFIG, rope_theta=777.0)
    assert native.fitted_head(head, model.model.checkpoint) is fitted, "read once"
    assert native.fitted_head(fitted, model.model.checkpoint) is fitted
    stating = builders.text_head(fitted.model.config)
    builders.write(files / "migm_heads" / "stating.safetensors", stating)
    stated = LoadHead.execute("stating.safetensors", "float32").result[0]
    pictures = [run(model, head=h)["samples"] for h in (head, stated)]
    assert torch.equal(*pictures)


def test_a_head_that_states_it_is_taken_as_it_is(files, model):
    path = builders.write(files / "migm_heads" / "head.safetensors", builders.text_head())
    head = LoadHead.execute(path.name, "float32").result[0]
    assert native.fitted_head(head, model.model.checkpoint) is head
    other = builders.text_head(replace(builders.TEXT_HEAD_CONFIG, rope_theta=1.0))
    builders.write(path, other)
    head = LoadHead.execute(path.name, "float32").result[0]
    with pytest.raises(ValueError, match=r"states rope_theta = 1\.0, not 10000\.0"):
        run(model, head=head)


# ------------------------------------------------------------------------------------------- LoRA


def lora_of(layer: str, weight: torch.Tensor, end: str = "") -> dict[str, torch.Tensor]:
    """A LoRA of rank 2, of one layer."""
    num_out, num_in = weight.shape
    return {
        f"{layer}.lora_A{end}.weight": torch.ones(2, num_in),
        f"{layer}.lora_B{end}.weight": torch.ones(num_out, 2),
    }


@pytest.fixture
def with_lora():
    """Applies a LoRA file as ComfyUI's node does; the pack's names are there."""
    import comfy.sd
    from shortcut_pack.nodes import lora

    lora.install()
    lora.install()
    return lambda model, raw: comfy.sd.load_lora_for_models(model, None, raw, 1.0, 0.0)[0]


TEXT_LAYER = "model.transformer.blocks.1.up_proj"
CLASS_LAYER = "transformer.layers.1.1.fn.net.0"


@needs_comfy
@pytest.mark.parametrize("prefix", ["", "base_model.model.", "diffusion_model."])
@pytest.mark.parametrize("end", ["", ".default"])
@pytest.mark.parametrize("is_published", [True, False])
@pytest.mark.parametrize("is_text", [True, False])
def test_loras_in_plain_and_peft_keys(
    is_text, is_published, end, prefix, model, class_model, with_lora, caplog
):
    patcher = model if is_text else class_model
    published, ours = (TEXT_LAYER, LAYER) if is_text else (CLASS_LAYER, LAYER)
    weight = patcher.model.diffusion_model.get_submodule(ours).weight
    raw = lora_of(prefix + (published if is_published else ours), weight, end)
    patched = with_lora(patcher, raw)
    assert set(patched.patches) == {f"diffusion_model.{ours}.weight"}
    assert "match nothing" not in caplog.text and "not loaded" not in caplog.text.lower()


@needs_comfy
@pytest.mark.parametrize("prefix", ["", "base_model.model.", "diffusion_model."])
@pytest.mark.parametrize("end", ["", ".in_proj"])
def test_a_lora_of_packed_weights_is_one_of_each(end, prefix, class_model, with_lora, caplog):
    parts = [f"blocks.1.attention.{part}" for part in ("query", "key", "value")]
    weight = class_model.model.diffusion_model.get_submodule(parts[0]).weight
    layer = f"{prefix}transformer.layers.1.0.fn.mha{end}"
    raw = lora_of(layer, torch.cat([weight.detach()] * 3))
    rows = f"{layer}.lora_B.weight"
    raw[rows] = torch.arange(6.0 * len(weight)).reshape(-1, 2)
    patches = with_lora(class_model, raw).patches
    assert [*patches] == [f"diffusion_model.{part}.weight" for part in parts]
    found = [patch[0][1].weights[0] for patch in patches.values()]
    assert torch.equal(torch.cat(found), raw[rows])
    assert "match nothing" not in caplog.text


@needs_comfy
def test_a_lora_of_keys_with_underscores(model, with_lora):
    weight = model.model.diffusion_model.get_submodule(LAYER).weight
    raw = lora_of(f"lora_unet_{TEXT_LAYER.replace('.', '_')}", weight)
    raw = {k.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): v for k, v in raw.items()}
    assert set(with_lora(model, raw).patches) == {f"diffusion_model.{LAYER}.weight"}


@needs_comfy
def test_keys_of_a_lora_that_match_nothing_are_said_once(model, with_lora, caplog):
    weight = model.model.diffusion_model.get_submodule(LAYER).weight
    raw = lora_of(f"base_model.model.{TEXT_LAYER}", weight)
    raw |= {k: v for i in range(9) for k, v in lora_of(f"unet.blocks.{i}.attn", weight).items()}
    with_lora(model, raw)
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(said) == 1
    assert said[0].startswith("LoRA: 18 of 20 keys match nothing in this masked image model and")


@needs_comfy
def test_loras_of_other_models_are_comfyuis_own_business(with_lora):
    import comfy.lora

    known = {"a": "diffusion_model.a.weight"}
    raw = lora_of("a", torch.zeros(3, 4))
    assert set(comfy.lora.load_lora(raw, known)) == {"diffusion_model.a.weight"}
