"""Check losses and training steps of the original DiMOO-Shortcut trainer.

Each check has controls: the same with one thing wrong on purpose, which must be told apart.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from golden_sets import GoldenSet, load
from lumina_sets import known
from original_loss import OriginalObjective, step_losses, window_loss
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut.denoiser import Features, Revealed
from shortcut_pack.shortcut.models.lumina_dimoo import ARCHITECTURE
from shortcut_pack.shortcut.models.lumina_dimoo import transformer as lumina
from shortcut_pack.shortcut.models.lumina_dimoo.head import LAYOUT
from shortcut_pack.shortcut.schedule import Step, plan
from shortcut_pack.shortcut.train.loss import Window, predict
from test_parity_train import Trainer, nonzero
from torch import Tensor

SETS = ("mse", "kl")
SETTINGS = replace(ARCHITECTURE.settings, guidance=())


class Unconditional:
    """Ask a head for the second of two branches, which does not see its prompt.

    The original trains on one branch at a time; the first one here is made up.
    """

    def __init__(self, head: Any):
        self.head, self.config = head, head.config

    def next_features(
        self,
        model: Any,
        features: Features,
        conditions: tuple[Tensor, ...],
        revealed: Revealed,
        mask_ratio: float,
    ) -> Features:
        prompts = (torch.zeros_like(conditions[0]), *conditions)
        return self.head.next_features(
            model, (features[0], *features), prompts, revealed, mask_ratio
        )[1:]


@dataclass(frozen=True)
class Case:
    """Hold one training set: its networks and what its batches say."""

    golden: GoldenSet
    model: lumina.OnGrid
    head: Any
    table = LAYOUT.table

    @classmethod
    def of(cls, name: str) -> Case:
        name = f"dimoo_train_{name}"
        golden = load(name)
        model = checkpoints.from_tensors(
            golden.weights("backbone"), num_codes=golden.args["vocab_size"], **known(name)
        )
        network: Any = checkpoints.build(model)
        newline = network.config.special_id("newline")
        target_S = golden["batch0/cur_token_ids"][0, -golden.args["img_seq_len"] :]
        columns = int((target_S == newline).nonzero()[0]) - 2
        rows = (len(target_S) - 4) // (columns + 1)
        head = checkpoints.from_tensors(golden.weights("head"), kind="head", **known(name))
        # A copy: the built head shares the set's tensors, and it is trained here.
        trained = copy.deepcopy(checkpoints.build(head)).requires_grad_(True)
        return cls(golden, network.on_grid(rows, columns), trained)

    @property
    def objective(self) -> OriginalObjective:
        """Return the original objective with the weights of the set."""
        args = self.golden.args
        return OriginalObjective(
            args["mse_weight"], args["kl_weight"], args["T"], only_masked=False
        )

    def steps(self, first: int, length: int) -> list[Step]:
        """Return the original trainer's steps. Its mask ratios are those of 4096 tokens, in float64, on any grid."""
        num_steps = self.golden.args["n_steps"]
        ratios = [math.cos(math.pi / 2 * (t / num_steps)) for t in range(num_steps)]
        ratios = [math.floor(4096 * ratio) / 4096 for ratio in ratios]
        masked = [*(int(self.model.num_tokens * ratio) for ratio in ratios), 0]
        return [
            replace(
                plan(SETTINGS, 1, 1, ARCHITECTURE.rules)[0],
                index=t,
                mask_ratio=ratios[t],
                num_masked=masked[t],
                num_revealed=masked[t] - masked[t + 1],
            )
            for t in range(first, first + length)
        ]

    def window(self, number: int) -> Window:
        """Return batch `number` as a window; of as many steps as the set rolls out."""
        golden, prefix = self.golden, f"batch{number}/"
        batch, config = golden.args["batches"][number], self.model.config
        tokens_BS = golden[prefix + "cur_token_ids"]
        tokens_BL = self.of_image(tokens_BS)
        is_masked_BL = tokens_BL == config.special_id("mask")
        is_new_BL = self.of_image(golden[prefix + "new_token_map"])
        new_BK = golden[prefix + "new_token_ids"][:, -int(is_new_BL.sum()) :]
        return Window(
            conditions=(tokens_BS[:, : -golden.args["img_seq_len"]],),
            features=(golden[prefix + "prev_feat"],),
            revealed=[Revealed(new_BK - config.num_text_ids, nonzero(is_new_BL))],
            steps=self.steps(batch["step"] + 1, golden.args["rollout_step"]),
            targets=[(golden[prefix + "tgt_feat"],)],
            masked_index=[nonzero(is_masked_BL)],
        )

    def of_image(self, values_BS: Tensor) -> Tensor:
        """Return the features at the image tokens."""
        index_1L = torch.arange(self.model.num_tokens).unsqueeze(0)
        return values_BS.gather(1, self.model.image_positions(index_1L, values_BS.shape[1]))

    def asked(self, head: Any, number: int) -> Any:
        """Return `head` as the branch of batch `number` calls it."""
        is_first = "uncond" not in self.golden.args["batches"][number]["key"]
        return head if is_first else Unconditional(head)

    def loss(self, head: Any, number: int, part: Window) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar that is minimised in batch `number`."""
        return window_loss(self.asked(head, number), self.model, part, self.objective)

    def check(self, number: int, part: Window, objective: OriginalObjective) -> None:
        """Compare the loss of one batch, its parts and the features they were taken of."""
        golden, prefix = self.golden, f"batch{number}/"
        head = self.asked(self.head, number)
        (estimate,) = predict(head, self.model, part)
        golden.assert_near(estimate[0], golden[prefix + "est_feat"], "est_feat")
        if prefix + "teacher_feat" in golden:
            golden.assert_near(part.targets[0][0], golden[prefix + "teacher_feat"], "teacher_feat")
        is_kl_known = golden.args["kl_weight"] > 0 or golden.args["val_kl"]
        losses = step_losses(
            self.model,
            estimate,
            part.targets[0],
            part.masked_index[0],
            objective,
        )
        golden.assert_close(losses["mse"], prefix + "loss_mse", "loss_mse")
        if is_kl_known:
            golden.assert_close(losses["kl"], prefix + "loss_kl", "loss_kl")
        loss, _ = window_loss(head, self.model, part, objective)
        golden.assert_close(loss / golden.args["accum_steps"], prefix + "loss", "loss")


@pytest.mark.parametrize("name", SETS)
def test_training_steps_and_their_losses_are_those_of_the_original(name: str) -> None:
    Trainer(Case.of(name)).check()


@pytest.mark.parametrize(
    ("what", "spoil"),
    [
        ("est_feat", lambda part: replace(part, steps=[replace(part.steps[0], mask_ratio=0.9)])),
        ("est_feat", lambda part: replace(part, features=part.targets[0])),
        ("loss_mse", lambda part: replace(part, targets=[part.features])),
    ],
)
def test_control_a_spoiled_window(what: str, spoil: Callable[[Window], Window]) -> None:
    case = Case.of("kl")
    with pytest.raises(AssertionError, match=f"^{what}:"):
        case.check(0, spoil(case.window(0)), case.objective)


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("loss_mse", {"only_masked": True}),
        ("loss_kl", {"temperature": 1.0}),
        ("loss", {"mse": 1.0}),
    ],
)
def test_control_another_objective(what: str, changes: dict[str, Any]) -> None:
    case = Case.of("kl")
    with pytest.raises(AssertionError, match=f"^{what}:"):
        case.check(0, case.window(0), replace(case.objective, **changes))


def test_control_a_divergence_of_masked_positions_alone() -> None:
    case = Case.of("kl")
    part = case.window(0)
    (estimate,) = predict(case.head, case.model, part)
    objective = replace(case.objective, only_masked=True)
    losses = step_losses(case.model, estimate, part.targets[0], part.masked_index[0], objective)
    with pytest.raises(AssertionError, match=r"^loss_kl:"):
        case.golden.assert_close(losses["kl"], "batch0/loss_kl", "loss_kl")


def test_control_a_branch_that_sees_its_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.of("kl")
    part = case.window(1)
    case.check(1, part, case.objective)
    monkeypatch.setattr(Case, "asked", lambda case, head, number: head)
    seen = replace(part, conditions=(part.conditions[0] % case.model.config.num_text_ids,))
    with pytest.raises(AssertionError, match=r"^est_feat:"):
        case.check(1, seen, case.objective)


@pytest.mark.parametrize(
    ("what", "name", "recipe"),
    [
        ("est_feat", "kl", {"weight_decay": 1.0}),
        ("est_feat", "kl", {"clip": 1e-3}),
        ("est_feat", "mse", {"lr": 2e-3}),
        ("ema", "mse", {"ema": 0.0}),
    ],
)
def test_control_another_recipe(what: str, name: str, recipe: dict[str, Any]) -> None:
    case = Case.of(name)
    with pytest.raises(AssertionError, match=f"^{what}:"):
        Trainer(case, **recipe).check()
