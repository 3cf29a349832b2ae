"""aMUSEd against what diffusers computed: forward passes, whole runs, texts, masks. Each kind has its controls."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import uvit_sets
from golden_sets import load
from safetensors.torch import save_file
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut.denoiser import Denoised
from shortcut_pack.shortcut.image import covered
from shortcut_pack.shortcut.models import amused_vq, meissonic
from shortcut_pack.shortcut.models.amused import ARCHITECTURE, transformer
from shortcut_pack.shortcut.models.clip_encoder import ClipTextEncoder, check_widths, stated_encoder
from shortcut_pack.shortcut.models.uvit_parts import TextCondition
from shortcut_pack.shortcut.sampler import decide
from shortcut_pack.shortcut.schedule import AMUSED, AMUSED_LINEAR, plan
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer
from uvit_sets import Run, at_tokens, replay

FORWARD = ("amused_transformer_256", "amused_transformer_512")
MADE = ("amused_sampling_cfg", "amused_sampling_t0", "amused_sampling_g1", "amused_sampling_b2")
PAINTED = ("amused_inpaint", "amused_inpaint_strength")
FROM_A_PICTURE = ("amused_img2img", "amused_img2img_full")
USUAL, RULES = ARCHITECTURE.settings, ARCHITECTURE.rules


def check_forward(name: str, spoil: Callable[[nn.Module], None] = lambda network: None) -> None:
    golden = load(name)
    network = uvit_sets.network(golden)
    spoil(network)
    condition = TextCondition(
        golden["encoder_hidden_states"], golden["pooled_text_emb"], golden["micro_conds"]
    )
    uvit_sets.check_pass(golden, network, condition, 0)


@pytest.mark.parametrize("name", FORWARD)
def test_a_pass_equals_the_original(name: str) -> None:
    check_forward(name)


def mean_kept(network: Any) -> None:
    for block in network.blocks:
        norm = block.norm3.norm
        block.norm3.norm = nn.RMSNorm(norm.normalized_shape, eps=norm.eps)
        block.norm3.norm.weight = norm.weight


def scale_and_shift_swapped(network: Any) -> None:
    for block in network.down.res_blocks:
        block.modulation.weight = nn.Parameter(torch.cat(block.modulation.weight.chunk(2)[::-1]))


def response_norm_off(network: Any) -> None:
    for block in (*network.down.res_blocks, *network.up.res_blocks):
        block.gamma.weight.data.zero_()


@pytest.mark.parametrize("spoil", [mean_kept, scale_and_shift_swapped, response_norm_off])
@pytest.mark.parametrize("name", FORWARD)
def test_control_a_wrong_pass_is_told_apart(name: str, spoil: Any) -> None:
    with pytest.raises(AssertionError):
        check_forward(name, spoil)


def run_of(name: str) -> Run:
    return replay(load(name), USUAL, RULES, AMUSED_LINEAR if name in PAINTED else AMUSED)


@pytest.mark.parametrize("name", (*MADE, *PAINTED, "amused_img2img"))
def test_a_run_equals_the_original(name: str) -> None:
    run_of(name).check()


def other_guidance(run: Run) -> None:
    run.steps = [replace(s, guidance=tuple(g + 0.1 for g in s.guidance)) for s in run.steps]


def swapped_micro_conditions(run: Run) -> None:
    swapped = [c.micro_B5[:, [1, 0, 2, 3, 4]] for c in run.conditions]
    run.conditions = [replace(c, micro_B5=m) for c, m in zip(run.conditions, swapped, strict=True)]


def no_noise_on_the_confidence(run: Run) -> None:
    run.steps = [replace(s, choice_temperature=0.0) for s in run.steps]


@pytest.mark.parametrize(
    "spoil", [other_guidance, swapped_micro_conditions, no_noise_on_the_confidence]
)
def test_control_a_wrong_run_of_a_kind_is_told_apart(spoil: Callable[[Run], None]) -> None:
    run = run_of("amused_sampling_cfg")
    spoil(run)
    with pytest.raises(AssertionError):
        run.check()


@pytest.mark.parametrize("name", (*MADE, *PAINTED, "amused_img2img"))
def test_control_a_run_by_another_text_is_told_apart(name: str) -> None:
    run = run_of(name)
    uvit_sets.other_text(run)
    with pytest.raises(AssertionError):
        run.check()


@pytest.mark.parametrize("name", PAINTED)
def test_control_the_cosine_is_told_apart_in_painting(name: str) -> None:
    with pytest.raises(AssertionError):
        replay(load(name), USUAL, RULES, AMUSED).check()


def test_image_to_image_at_strength_one_shows_the_network_what_the_original_does() -> None:
    """Its index wraps around, so that it changes a token a step: that rule is not followed, its passes are."""
    golden = load("amused_img2img_full")
    network, (wanted,) = uvit_sets.network(golden), uvit_sets.conditions_of(golden)
    for number, tokens_Bhw in enumerate(golden["x_before"]):
        with torch.no_grad():
            logits_BLV = network.output.conv2(network(tokens_Bhw, wanted, 0))
        expected = at_tokens(golden[f"step{number:02d}/logits"])
        golden.assert_near(logits_BLV, expected, f"step {number}")
        with pytest.raises(AssertionError):  # control: with a micro-condition of another size
            other = replace(wanted, micro_B5=wanted.micro_B5 + 8)
            golden.assert_near(network.output.conv2(network(tokens_Bhw, other, 0)), expected, "")
        assert int((tokens_Bhw == network.config.mask_id).sum()) <= 1


@pytest.mark.parametrize("name", (*PAINTED, *FROM_A_PICTURE))
def test_pictures_have_the_codes_of_the_original(name: str) -> None:
    golden = load(name)
    known = {"num_groups": golden.info["config"]["vqvae"]["norm_num_groups"]}
    vq: Any = checkpoints.build(
        checkpoints.from_tensors(golden.weights("vqvae"), kind="vq", **known)
    )
    with torch.no_grad():
        assert torch.equal(vq.encode(golden["image"] * 2 - 1), golden["codes"])
        assert not torch.equal(vq.encode(golden["image"]), golden["codes"])


STEPS = load("scheduler_steps")


@dataclass(frozen=True)
class Uniform:
    """Stands in for `Noise`: the recorded draws of the confidence; the codes are the most likely ones."""

    u_BL: Tensor

    def choice(self, step: int, index_BN: Tensor) -> Tensor:
        return -torch.log(-torch.log(self.u_BL.gather(1, index_BN)))


def made_by_a_step(case: str, is_spoiled: bool = False) -> tuple[Tensor, Tensor]:
    """Tokens (B, L) after a single call of the scheduler: ours with its counts, and its own.

    A control turns the logits.
    """
    about, mask_id = STEPS.args["cases"][case], STEPS.args["mask_token_id"]
    before_BL, logits_BLV = STEPS[f"{case}/sample"].flatten(1), STEPS[f"{case}/logits"]
    if logits_BLV.ndim == 4:
        logits_BLV = at_tokens(logits_BLV)
    u_BL = STEPS[f"{case}/u"] if f"{case}/u" in STEPS else torch.full(before_BL.shape, 0.5)
    made, index = [], about["N"] - 1 - about["timestep"]
    num_steps = about["N"]
    for row, after in enumerate(about["masked_after"]):
        tokens_1L = before_BL[row : row + 1]
        index_1N = (tokens_1L[0] == mask_id).nonzero().T
        num_masked = index_1N.shape[1]
        step = plan(replace(USUAL, num_steps=num_steps, temperature=0.0), 12, 12, RULES)[index]
        step = replace(step, num_masked=num_masked, num_revealed=num_masked - after)
        logits_1NV = logits_BLV[row, index_1N[0]].unsqueeze(0)
        if is_spoiled:
            logits_1NV = -logits_1NV
        noise: Any = Uniform(u_BL[row : row + 1])
        denoised = Denoised(lambda _, logits_1NV=logits_1NV: logits_1NV, (), True)
        revealed, _ = decide(denoised, step, index_1N, noise)
        made.append(tokens_1L.scatter(1, revealed.index_BK, revealed.codes_BK))
    return torch.cat(made), STEPS[f"{case}/next"].flatten(1)


@pytest.mark.parametrize("case", ("last", "batch_unequal", "ratio_linear", "two_dim"))
def test_a_step_equals_the_original(case: str) -> None:
    ours, theirs = made_by_a_step(case)
    assert torch.equal(ours, theirs)
    spoiled, _ = made_by_a_step(case, is_spoiled=True)
    assert not torch.equal(spoiled, theirs)  # control


def test_steps_that_the_original_takes_for_nothing_are_left_out() -> None:
    """With nothing masked it masks a known token; one masked token it makes again; equal scores reveal all."""
    assert plan(USUAL, 0, 12, RULES) == []
    (only,) = plan(replace(USUAL, num_steps=4), 1, 12, RULES)
    assert only.num_revealed == 1
    assert STEPS.args["cases"]["ties"]["masked_after"] == [0]
    first, *_ = plan(replace(USUAL, num_steps=4), 12, 12, RULES)
    assert first.num_masked_after == 11


def test_masks_of_pictures_equal_the_original() -> None:
    """But for tokens that are covered by exactly a half, which it makes anew, and which stay here."""
    golden = load("painting_masks")
    for name, box in golden.args["rectangles"].items():
        mask_1YX = torch.zeros(1, box["height"], box["width"])
        mask_1YX[:, box["top"] : box["bottom"], box["left"] : box["right"]] = 1
        expected_hw = golden[f"{name}/mask"]
        share_hw = torch.nn.functional.avg_pool2d(mask_1YX, 16)[0]
        differs_hw = covered(mask_1YX, *expected_hw.shape)[0] != expected_hw
        assert torch.equal(differs_hw, expected_hw & (share_hw <= 0.5))
        assert not differs_hw[share_hw > 0.5].any()
    soft_1YX = golden["soft/image"].unsqueeze(0).float() / 255
    assert torch.equal(covered(soft_1YX, 16, 16)[0], golden["soft/mask"])
    assert not torch.equal(covered(soft_1YX.mT, 16, 16)[0], golden["soft/mask"])  # control


class Words:
    """Stands in for a tokenizer: it knows whole prompts."""

    def __init__(self, ids: dict[str, list[int]], pad: int, length: int):
        self.ids, self.pad, self.model_max_length = ids, pad, length

    def __call__(self, text: str, **options: Any) -> Any:
        ids = self.ids[text]
        if options.get("padding") == "max_length":
            length = options["max_length"]
            ids = [*ids[: length - 1], ids[-1]] if len(ids) > length else ids
            return SimpleNamespace(input_ids=torch.tensor([ids + [self.pad] * (length - len(ids))]))
        return SimpleNamespace(input_ids=ids)

    def get_vocab(self) -> dict[str, int]:
        return {}


def text_encoder(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ClipTextEncoder:
    """The set's text encoder, from a folder as published."""
    golden = load(name)
    args, config = golden.args, golden.info["config"]["text_encoder"]
    for part in ("text_encoder", "tokenizer", "transformer"):
        (folder / part).mkdir()
    stated = {"model_type": "clip_text_model", "architectures": ["CLIPTextModelWithProjection"]}
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config | stated))
    save_file(golden.weights("text_encoder"), folder / "text_encoder" / "model.safetensors")
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (folder / "tokenizer" / file).write_text("{}")
    words = Words(args["prompts"], args["pad"], args["model_max_length"])
    monkeypatch.setattr(CLIPTokenizer, "from_pretrained", lambda *given, **options: words)
    widths: Any = SimpleNamespace(text_width=24, pooled_width=20)
    return ClipTextEncoder.of(folder / "transformer" / "model.safetensors", widths)


@pytest.mark.parametrize("name", ("amused_text", "amused_text_legacy"))
def test_texts_equal_the_original(name: str, tmp_path: Path, monkeypatch, caplog) -> None:
    golden, encoder = load(name), text_encoder(name, tmp_path, monkeypatch)
    for row, prompt in enumerate(golden.args["prompt"]):
        condition = encoder(prompt)
        golden.assert_near(condition.states_BPC[0], golden["cond/hidden"][row], prompt)
        golden.assert_near(condition.pooled_BC[0], golden["cond/pooled"][row], prompt)
        with pytest.raises(AssertionError):
            golden.assert_near(condition.states_BPC[0], golden["cond/last_hidden_state"][row], "")
    assert "The prompt has 17 tokens; the text encoder reads 12 and ignores the rest" in caplog.text


@pytest.mark.parametrize("side", (256, 512))
def test_the_key_table_is_that_of_the_published_files(side: int) -> None:
    config = uvit_sets.check_key_table(f"amused_{side}_transformer", transformer.LAYOUT)
    assert config == ARCHITECTURE.sizes[f"amused-{side}"].model


def test_the_vq_model_is_that_of_the_published_files() -> None:
    assert uvit_sets.check_key_table("amused_vqvae", amused_vq.LAYOUT) == amused_vq.PUBLISHED


@pytest.mark.parametrize(
    ("name", "architecture"), [("amused", ARCHITECTURE), ("meissonic", meissonic.ARCHITECTURE)]
)
def test_the_text_encoder_is_that_of_the_published_files(name: str, architecture: Any) -> None:
    tensors, about = uvit_sets.published_shapes(f"{name}_text_encoder")
    stated = stated_encoder(Path(about["file"]), tensors, Path("."))
    sizes = {k: v for k, v in about["config"].items() if k in stated and k != "hidden_act"}
    assert sizes == {k: stated[k] for k in sizes}
    for size in architecture.sizes.values():
        check_widths((stated["hidden_size"], stated["projection_dim"]), size.model, "here")
    with torch.device("meta"):
        network = CLIPTextModelWithProjection(CLIPTextConfig(**stated, bos_token_id=None))
    expected = {key: tensor.shape for key, tensor in network.state_dict().items()}
    assert {key: tensor.shape for key, tensor in tensors.items()} == expected
