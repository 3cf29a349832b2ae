"""The VQ model of aMUSEd and Lumina-DiMOO against what the original computed, and the files it comes in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import builders
import golden_sets
import pytest
import torch
from safetensors.torch import save_file
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut.image import covered, to_pictures, to_pixels
from shortcut_pack.shortcut.models import amused_vq as lumina_vq
from shortcut_pack.shortcut.models.layers import Bare
from torch import Tensor

NUM_GROUPS = 8
OFFSET = 126356  # of codes among the tokens
MASK = OFFSET - 20
NAME = "diffusion_pytorch_model.safetensors"


def golden() -> golden_sets.GoldenSet:
    return golden_sets.load("lumina_vq")


def network(raw: dict[str, Tensor] | None = None, **known: int) -> Any:
    raw = golden().weights("vq") if raw is None else raw
    checkpoint = checkpoints.from_tensors(raw, kind="vq", **{"num_groups": NUM_GROUPS, **known})
    assert checkpoint.layout is lumina_vq.LAYOUT
    return checkpoints.build(checkpoint)


def write(folder: Path, **changes: Any) -> Path:
    """The published folder; a change to None leaves a line of config.json out."""
    folder.mkdir(exist_ok=True)
    stated = {"_class_name": "VQModel", **golden().info["config"]["vq"], **changes}
    (folder / "config.json").write_text(json.dumps(stated))
    save_file(golden().weights("vq"), folder / NAME, {"format": "pt"})
    return folder / NAME


@torch.no_grad()
def check_decode(vq: Any) -> None:
    for index, codes_hw in enumerate(golden()["codes"]):
        (pixels_CYX,) = vq.decode(codes_hw.unsqueeze(0))
        golden().assert_near((pixels_CYX + 1) / 2, golden()[f"decode/{index}/raw"][0], "decode")


@torch.no_grad()
def check_encode(vq: Any, name: str) -> None:
    pixels_BCYX = golden()[f"{name}/pixels"] * 2 - 1
    golden().assert_close(vq.latents(pixels_BCYX), f"{name}/latents")
    assert torch.equal(vq.encode(pixels_BCYX).flatten(), golden()[f"{name}/indices"]), "ids"


def test_decoding_gives_the_pixels_of_the_original() -> None:
    check_decode(network())


def test_pictures_are_those_of_the_original() -> None:
    with torch.no_grad():
        pictures = to_pictures(network().decode(golden()["codes"]))
    for index, picture in enumerate(pictures):
        found = to_pixels(picture)[0].movedim(0, -1).add(1).mul(127.5).round()
        # One step either way: the rounding of halves.
        assert (found - golden()[f"decode/{index}/uint8"].float()).abs().max() <= 1


@pytest.mark.parametrize("name", ["img0", "img1"])
def test_encoding_gives_the_ids_of_the_original(name: str) -> None:
    check_encode(network(), name)


def test_control_without_the_shift_of_pixels_the_ids_differ() -> None:
    vq = network()
    with pytest.raises(AssertionError, match="latents"):
        golden().assert_close(vq.latents(golden()["img0/pixels"]), "img0/latents")


def test_control_other_groups_of_the_norms_do_not_pass() -> None:
    with pytest.raises(AssertionError, match="decode"):
        check_decode(network(num_groups=4))


def test_control_exchanged_middle_blocks_do_not_pass() -> None:
    def swapped(key: str) -> str:
        a, b = "mid_block.resnets.0", "mid_block.resnets.1"
        return key.replace(a, "?").replace(b, a).replace("?", b)

    vq = network({swapped(key): value for key, value in golden().weights("vq").items()})
    with pytest.raises(AssertionError, match="decode"):
        check_decode(vq)
    with pytest.raises(AssertionError, match="latents"):
        check_encode(vq, "img0")


def rectangle(case: dict[str, Any]) -> Tensor:
    """Which pixels (Y, X) of the encoded image are to be made, as the original draws its rectangle."""
    height, width = golden()[case["image"]].shape[:2]
    rows, columns = golden()[f"{case['image']}/pixels"].shape[-2:]
    high, wide = round(height * case["mask_h_ratio"]), round(width * case["mask_w_ratio"])
    top = round((height - high) // 2 * rows / height)
    left = round((width - wide) // 2 * columns / width)
    is_inside_YX = torch.zeros(rows, columns, dtype=torch.bool)
    is_inside_YX[
        top : top + round(high * rows / height), left : left + round(wide * columns / width)
    ] = True
    return ~is_inside_YX if case["mask_mode"] == "outpainting" else is_inside_YX


@pytest.mark.parametrize("case", golden().args["paint"], ids=lambda case: case["name"])
@torch.no_grad()
def test_painting_makes_anew_what_the_original_does(case: dict[str, Any]) -> None:
    codes_hw = network().encode(golden()[f"{case['image']}/pixels"] * 2 - 1)[0]
    is_masked_1hw = covered(rectangle(case).unsqueeze(0), *codes_hw.shape)
    tokens_hw = (codes_hw + OFFSET).masked_fill(is_masked_1hw[0], MASK)
    wanted_hw = golden()[f"paint/{case['name']}/tokens"].view(len(codes_hw), -1)[:, :-1]
    assert torch.equal(tokens_hw, wanted_hw)
    # The rectangle of in_dilate covers no code by more than half, and nothing grows from nothing.
    assert is_masked_1hw.any() == (case["name"] != "in_dilate")


def test_control_half_of_a_code_is_not_enough_to_make_it_anew() -> None:
    half_1YX = torch.zeros(1, 48, 64)
    half_1YX[:, :, :24] = 1
    assert covered(half_1YX, 3, 4)[0].tolist() == [[True, False, False, False]] * 3
    half_1YX[:, :8, 24] = 1
    assert (
        covered(half_1YX, 3, 4)[0].tolist()
        == [[True, True, False, False]] + [[True] + [False] * 3] * 2
    )


@torch.no_grad()
def test_an_image_has_the_same_codes_alone_and_in_a_batch() -> None:
    vq = network()
    pixels_BCYX = torch.cat([golden()["img0/pixels"], golden()["img0/pixels"].flip(-1)]) * 2 - 1
    both_Bhw = vq.encode(pixels_BCYX)
    assert not torch.equal(both_Bhw[0], both_Bhw[1])
    assert torch.equal(both_Bhw[1], vq.encode(pixels_BCYX[1:])[0])


def test_every_weight_sits_in_a_layer_of_the_host() -> None:
    config = lumina_vq.Config((16, 32), 1, 8, 64, NUM_GROUPS)
    vq = lumina_vq.AmusedVQ(config, device="meta", operations=Bare)
    layers = (Bare.Conv2d, Bare.GroupNorm, Bare.Embedding)
    for name, module in vq.named_modules():
        has_own = any(True for _ in (*module.parameters(False), *module.buffers(False)))
        assert not has_own or isinstance(module, layers), name


# Files.


def test_the_published_folder_is_read_with_its_config(tmp_path: Path) -> None:
    checkpoint = checkpoints.load(write(tmp_path), kind="vq")
    config = checkpoint.config
    assert config == lumina_vq.Config((16, 16, 16, 32, 32), 1, 8, 64, NUM_GROUPS)
    assert (config.downscale, config.channels) == (16, 16)
    check_decode(checkpoints.build(checkpoint))
    ours = tmp_path / "vq.safetensors"
    checkpoints.save(ours, checkpoint)
    again = checkpoints.load(ours)
    assert (again.config, again.fingerprint) == (config, checkpoint.fingerprint)


def test_published_tensors_come_back_under_their_keys(tmp_path: Path) -> None:
    builders.write(tmp_path / "a.pth", checkpoints.load(write(tmp_path)))
    again, raw = torch.load(tmp_path / "a.pth"), golden().weights("vq")
    assert again.keys() == raw.keys()
    assert all(torch.equal(again[key], raw[key]) for key in raw)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_vq_embeddings": 128}, "num_codes is 64, but the files beside it say 128"),
        ({"norm_num_groups": 5}, r"norms have 5 groups, expected a divisor of the widths \[16"),
        ({"mid_block_add_attention": True}, "mid_block_add_attention = True, expected False"),
        ({"lookup_from_codebook": False}, "lookup_from_codebook = False, expected True"),
        ({"vq_embed_dim": 4}, "vq_embed_dim = 4, expected None"),
        ({"_class_name": "AutoencoderKL"}, "'AutoencoderKL', expected 'VQModel'"),
        ({"up_block_types": ["AttnUpDecoderBlock2D"] * 5}, "up_block_types"),
        ({"block_out_channels": 5}, "block_out_channels = 5, expected a list"),
    ],
)
def test_a_config_that_does_not_fit(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        checkpoints.load(write(tmp_path, **changes))


def test_without_its_config_the_file_says_what_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"groups of its norms cannot .* Put the config.json"):
        checkpoints.load(path)


def test_unknown_and_missing_keys_are_named() -> None:
    raw = golden().weights("vq")
    del raw["decoder.mid_block.resnets.0.conv1.bias"]
    raw["encoder.mid_block.attentions.0.to_q.weight"] = torch.zeros(32, 32)
    match = "1 keys are not of .*'encoder.mid_block.attentions.*missing: 'decoder.mid_block"
    with pytest.raises(ValueError, match=match):
        network(raw)


def test_the_published_sizes_need_no_config() -> None:
    config = lumina_vq.Config((128, 256, 256, 512, 768), 2, 64, 8192, 32)
    vq = lumina_vq.AmusedVQ(config, device="meta")
    names = {name: tensor for name, tensor in vq.state_dict().items()}
    assert lumina_vq.read_config(names, {}) == config
