"""Golden sets of aMUSEd and Meissonic: their networks, and whole runs of the originals that a test replays.

checkpoint(golden)    -> the set's weights
network(golden)       -> the network, with these weights
replay(golden)        -> a `Run`; `check()` compares every step with the record
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import torch
from fakes import logits_of
from golden_sets import FOLDER, GoldenSet
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut.denoiser import Denoiser, positions
from shortcut_pack.shortcut.models.key_table import rename
from shortcut_pack.shortcut.models.layers import Bare
from shortcut_pack.shortcut.models.layout import Layout
from shortcut_pack.shortcut.models.uvit import OnGrid
from shortcut_pack.shortcut.models.uvit_parts import TextCondition
from shortcut_pack.shortcut.sampler import Trace, confidence, draw_codes, sample
from shortcut_pack.shortcut.schedule import Settings, Step, plan, reveal_counts
from torch import Tensor

KNOWN = {  # what their configuration calls what no tensor shows
    "num_attention_heads": "num_heads",
    "block_num_heads": "stage_heads",
    "micro_cond_encode_dim": "micro_width",
    "axes_dims_rope": "rope_axes",
}


def checkpoint(golden: GoldenSet) -> checkpoints.Checkpoint:
    stated = golden.info["config"]["transformer"]
    known = {ours: stated[theirs] for theirs, ours in KNOWN.items() if theirs in stated}
    return checkpoints.from_tensors(golden.weights("transformer"), kind="model", **known)


def network(golden: GoldenSet) -> Any:
    return checkpoints.build(checkpoint(golden))


def check_pass(golden: GoldenSet, net: Any, condition: TextCondition, steps_left: int) -> None:
    """Compares what the output layers get, and logits."""
    given: list[Tensor] = []
    net.output.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    with torch.no_grad():
        logits_BLV = net.output.conv2(net(golden["input_ids"], condition, steps_left))
    golden.assert_near(given[0], at_tokens(golden["feature"]), "feature")
    golden.assert_near(logits_BLV, at_tokens(golden["logits"]), "logits")


def published_shapes(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a published file on the meta device, and what else is known of it."""
    stated = json.loads((FOLDER / f"{name}_layout.json").read_text())
    shapes = stated["tensors"].items()
    return {key: torch.empty(shape, device="meta") for key, shape in shapes}, stated


def check_key_table(name: str, layout: Layout) -> Any:
    """Compares the keys and shapes of a published file with those of our network; returns its configuration."""
    published, stated = published_shapes(name)
    ours, unknown = rename(layout.table, published)
    network = layout.network(layout.read_config(ours, {}), device="meta", operations=Bare)
    expected = {key: tensor.shape for key, tensor in network.state_dict().items()}
    assert (unknown, {key: tensor.shape for key, tensor in ours.items()}) == ([], expected)
    assert sum(p.numel() for p in network.parameters()) == stated["num_parameters"]
    return network.config


def other_text(run: Run) -> None:
    """Spoils a run by the least: a text that is a hundredth longer."""
    run.conditions = [replace(c, pooled_BC=1.01 * c.pooled_BC) for c in run.conditions]


def at_tokens(logits_BVhw: Tensor) -> Tensor:
    """Logits (B, L, V) of recorded ones."""
    return logits_BVhw.flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class Replay:
    """Stands in for `Noise`: the draws of the original, by executed step."""

    golden: GoldenSet
    first: int  # index of the first executed step

    def codes(self, step: int, index_BN: Tensor, logits_BNV: Tensor) -> Tensor:
        q_BLV = self.golden[f"noise/exp/{step - self.first:02d}"]
        index_BNV = index_BN.unsqueeze(-1).expand_as(logits_BNV)
        return (logits_BNV.softmax(-1) / q_BLV.gather(1, index_BNV)).argmax(-1)

    def choice(self, step: int, index_BN: Tensor) -> Tensor:
        name = f"noise/gumbel/{step - self.first:02d}"
        if name not in self.golden:  # the last step reveals everything, and draws nothing
            return torch.zeros(index_BN.shape)
        u_BN = self.golden[name].gather(1, index_BN)
        return -torch.log((-torch.log(u_BN.clamp(min=1e-20))).clamp(min=1e-20))


@dataclass
class Run:
    """All that a replay needs; a control spoils one of them."""

    golden: GoldenSet
    model: OnGrid
    conditions: list[TextCondition]
    steps: list[Step]
    noise: Replay

    def check(self) -> None:
        golden, mask_id = self.golden, self.model.config.mask_id
        before = golden["x_before"].flatten(2)
        traces: list[Trace] = []
        is_masked_BL = before[0] == mask_id
        codes_BL = before[0].masked_fill(is_masked_BL, 0)
        denoiser = Denoiser(self.model, self.conditions)
        made_BL = sample(denoiser, codes_BL, is_masked_BL, self.steps, self.noise, traces.append)
        assert len(traces) == len(before)
        for number, trace in enumerate(traces):
            shown_BL = codes_BL.masked_fill(is_masked_BL, mask_id)
            assert torch.equal(shown_BL, before[number]), f"tokens before step {number}"
            self.check_step(number, trace, is_masked_BL)
            codes_BL, is_masked_BL = trace.codes_BL, trace.is_masked_BL
        assert torch.equal(made_BL, golden["final"].flatten(1))

    def check_step(self, number: int, trace: Trace, was_masked_BL: Tensor) -> None:
        golden, step, prefix = self.golden, trace.step, f"step{number:02d}/"
        index_BN = positions(was_masked_BL, step.num_masked)
        logits_BNV = logits_of(trace)
        recorded_BLV = at_tokens(golden[prefix + "logits"])
        expected_BNV = recorded_BLV.gather(1, index_BN.unsqueeze(-1).expand_as(logits_BNV))
        golden.assert_near(logits_BNV, expected_BNV, f"logits of step {number}")
        drawn_BN = draw_codes(logits_BNV, step, index_BN, self.noise)
        assert torch.equal(drawn_BN, golden[prefix + "pred"].flatten(1).gather(1, index_BN))
        assert golden["mask_len"][number].tolist() == [step.num_masked_after] * len(index_BN)
        if prefix + "conf" in golden:
            score_BN = confidence(logits_BNV, drawn_BN, step, index_BN, self.noise)
            golden.assert_near(
                score_BN, golden[prefix + "conf"].gather(1, index_BN), f"confidence of {number}"
            )
            assert torch.equal(trace.is_masked_BL, golden[prefix + "stay_masked"])


def conditions_of(golden: GoldenSet) -> list[TextCondition]:
    """Of each guidance branch, the wanted one first; the original has it last."""
    wanted = golden["encoder_hidden_states"], golden["prompt_embeds"]
    num_images = len(wanted[0])
    micro = list(golden["micro_conds"].split(num_images))
    found = [TextCondition(*wanted, micro[-1])]
    if golden.args["guidance_scale"] > 1:
        other = golden["negative_encoder_hidden_states"], golden["negative_prompt_embeds"]
        found.append(TextCondition(*other, micro[0]))
    return found


def replay(golden: GoldenSet, settings: Settings, rules: Any, schedule: str) -> Run:
    """A run by the plan of `settings`, from where the original began.

    Where the original entered the schedule late, the steps are those from there on, with its number of masked tokens.
    """
    args, scale = golden.args, golden.args["guidance_scale"]
    model = network(golden).on_grid(*args["grid"])
    num_steps = args["num_inference_steps"]
    settings = replace(
        settings,
        num_steps=num_steps,
        guidance=(scale - 1,) if scale > 1 else (),
        schedule=schedule,
        temperature=1.0 if "noise/exp/00" in golden else 0.0,
    )
    first = num_steps - 1 - int(golden["timesteps"][0])
    masked = (golden["x_before"][0] == model.config.mask_id).flatten(1).sum(1)
    num_masked, num_tokens = int(masked[0]), args["grid"][0] * args["grid"][1]
    steps = plan(settings, num_masked, num_tokens, rules)
    if first:
        whole = num_masked if schedule == "amused-linear" else num_tokens
        steps = _entered(steps, first, reveal_counts(schedule, num_steps, whole, num_tokens))
    temperatures = golden["temperatures"].tolist()
    steps = [replace(s, choice_temperature=temperatures[s.index]) for s in steps]
    return Run(golden, model, conditions_of(golden), steps, Replay(golden, first))


def _entered(steps: list[Step], first: int, counts: list[int]) -> list[Step]:
    """The steps from `first` on, of which each leaves as many masked as the schedule of `counts`."""
    total, num_masked, found = sum(counts), steps[0].num_masked, []
    for step in steps[first:]:
        after = total - sum(counts[: step.index + 1])
        found.append(replace(step, num_masked=num_masked, num_revealed=num_masked - after))
        num_masked = after
    return found
