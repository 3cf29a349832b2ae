"""Check losses and training steps of the original MaskGIT-Shortcut trainer.

Each check has controls: the same with one thing wrong on purpose, which must be told apart.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from builders import publish
from golden_sets import GoldenSet, load
from original_loss import OriginalObjective, step_losses, window_loss
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut.denoiser import Revealed
from shortcut_pack.shortcut.models.maskgit.head import LAYOUT
from shortcut_pack.shortcut.schedule import Settings, plan
from shortcut_pack.shortcut.train.fit import Recipe, fit
from shortcut_pack.shortcut.train.loss import Window, predict
from torch import Tensor, nn

TRAINER_TOKENS = (
    1024  # the original trainer's mask ratios are those of this many, whatever the grid
)
SETS = ("mse", "kl", "real_grid")


@dataclass(frozen=True)
class Replay:
    """Stand in for `Noise`: the draws of the steps that were recorded."""

    codes_by_step: dict[int, Tensor]
    gumbel_by_step: dict[int, Tensor]

    def codes(self, step: int, index_BN: Tensor, logits_BNV: Tensor) -> Tensor:
        return self.codes_by_step[step].gather(1, index_BN)

    def choice(self, step: int, index_BN: Tensor) -> Tensor:
        return self.gumbel_by_step[step].gather(1, index_BN)


def build(golden: GoldenSet) -> tuple[Any, Any]:
    """Return the model and, if the set has one, its head."""
    sizes = golden.info["config"]["vit"]
    known = {"num_heads": sizes["heads"], "num_codes": sizes["codebook_size"]}
    model = checkpoints.build(
        checkpoints.from_tensors(golden.weights("vit"), kind="model", **known)
    )
    if "head" not in golden.info["weights"]:
        return model, None
    head = checkpoints.from_tensors(
        golden.weights("head"), kind="head", num_heads=golden.args["head"]["num_heads"]
    )
    # A copy: the built head shares the set's tensors, and it is trained here.
    return model, copy.deepcopy(checkpoints.build(head)).requires_grad_(True)


@pytest.mark.parametrize("offset", [0, 1])
def test_mask_ratios_are_those_of_the_original_trainer(offset):
    golden = load("maskgit_schedules")
    names = [name for name in golden.tensors if name.startswith("train_mask_ratio/")]
    assert len(names) > 3
    for name in names:
        num_steps = int(name.rsplit("N", 1)[1])
        steps = plan(Settings(num_steps=num_steps), TRAINER_TOKENS, TRAINER_TOKENS)
        # Entry s goes with the prediction of step s + 1.
        found = torch.tensor([step.mask_ratio for step in steps])[1 - offset :][: num_steps - 1]
        is_same = torch.allclose(found, golden[name], rtol=0, atol=1e-6)
        assert is_same == (offset == 0), name


@dataclass(frozen=True)
class Case:
    """Hold one training set: its networks and what its batches say."""

    golden: GoldenSet
    model: Any
    head: Any
    table = LAYOUT.table

    @classmethod
    def of(cls, name: str) -> Case:
        golden = load(f"maskgit_train_{name}")
        return cls(golden, *build(golden))

    @property
    def objective(self) -> OriginalObjective:
        """Return the original objective with the weights of the set."""
        args = self.golden.args
        return OriginalObjective(args["mse_weight"], args["kl_weight"], args["T"])

    def window(self, number: int) -> Window:
        """Return batch `number` as a window; of as many steps as the set rolls out."""
        golden, prefix = self.golden, f"batch{number}/"
        batch, num_tokens = golden.args["batches"][number], self.model.config.num_tokens
        steps = plan(
            Settings(num_steps=golden.args["n_steps"], guidance=()), TRAINER_TOKENS, TRAINER_TOKENS
        )
        first, length = batch["step"] + 1, golden.args["rollout_step"]
        _, _, label, branch = batch["key"].split("_")
        no_class = self.model.config.num_classes
        codes_BL = golden[prefix + "cur_token_ids"][:, :num_tokens]
        is_masked_BL = codes_BL == self.model.config.mask_id
        is_new_BL = golden[prefix + "new_token_map"][:, :num_tokens]
        revealed = Revealed(golden[prefix + "new_token_ids"], nonzero(is_new_BL))
        return Window(
            conditions=(torch.tensor([int(label) if branch == "cond" else no_class]),),
            features=(golden[prefix + "prev_feat"],),
            revealed=[revealed],
            steps=steps[first : first + length],
            targets=[(golden[prefix + "tgt_feat"],)],
            masked_index=[nonzero(is_masked_BL)],
        )

    def check(self, number: int, part: Window, objective: OriginalObjective) -> None:
        """Compare the loss of one batch, its parts and the features they were taken of."""
        golden, prefix = self.golden, f"batch{number}/"
        index_BN = part.masked_index[0]
        is_masked_BS = torch.zeros_like(golden[prefix + "mask_map"]).scatter(1, index_BN, True)
        assert torch.equal(is_masked_BS, golden[prefix + "mask_map"]), "mask_map"
        (estimate,) = predict(self.head, self.model, part)
        found, expected = estimate[0].gather(1, wide(index_BN, estimate[0])), prefix + "est_feat"
        golden.assert_near(found[:, : golden[expected].shape[1]], golden[expected], "est_feat")
        if prefix + "teacher_feat" in golden:
            target_BND = part.targets[0][0].gather(1, wide(index_BN, estimate[0]))
            golden.assert_near(target_BND[:, :40], golden[prefix + "teacher_feat"], "teacher_feat")
        losses = step_losses(
            self.model,
            estimate,
            part.targets[0],
            index_BN,
            objective,
        )
        golden.assert_close(losses["mse"], prefix + "loss_mse", "loss_mse")
        golden.assert_close(losses["kl"], prefix + "loss_kl", "loss_kl")
        loss, _ = window_loss(self.head, self.model, part, objective)
        golden.assert_close(loss / golden.args["accum_steps"], prefix + "loss", "loss")

    def loss(self, head: Any, number: int, part: Window) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar that is minimised in batch `number`."""
        return window_loss(head, self.model, part, self.objective)


def nonzero(is_chosen_BL: Tensor) -> Tensor:
    """Return the indices (B, N) of the True entries of one image."""
    return is_chosen_BL[0].nonzero().T


def wide(index_BN: Tensor, features_BSD: Tensor) -> Tensor:
    """Return `index_BN` in the shape that gather takes."""
    return index_BN.unsqueeze(-1).expand(-1, -1, features_BSD.shape[-1])


@pytest.mark.parametrize("name", SETS)
def test_losses_are_those_of_the_original(name):
    case = Case.of(name)
    for number in range(len(case.golden.args["batches"])):
        if name == "mse" and number > 0:
            break  # later batches are of trained weights: the next test
        case.check(number, case.window(number), case.objective)


@pytest.mark.parametrize(
    ("what", "spoil"),
    [
        ("est_feat", lambda part: replace(part, steps=[replace(part.steps[0], mask_ratio=0.9)])),
        ("est_feat", lambda part: replace(part, features=part.targets[0])),
        ("loss_mse", lambda part: replace(part, targets=[part.features])),
    ],
)
def test_control_a_spoiled_window(what, spoil):
    case = Case.of("kl")
    with pytest.raises(AssertionError, match=what):
        case.check(0, spoil(case.window(0)), case.objective)


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("loss_mse", {"only_masked": False}),
        ("loss_kl", {"temperature": 1.0}),
        ("loss", {"mse": 1.0}),
    ],
)
def test_control_another_objective(what, changes):
    case = Case.of("kl")
    with pytest.raises(AssertionError, match=f"^{what}:"):
        case.check(0, case.window(0), replace(case.objective, **changes))


class Trainer:
    """Run `fit` on the batches of a set and keep the norms after every optimizer step.

    Args:
        case: as `Case`, of this set or that of another model.
        parts_of: as for `fit`.
        recipe: figures that differ from the set's.
    """

    def __init__(self, case: Any, parts_of: Callable[[Any], Any] | None = None, **recipe: Any):
        args = case.golden.args
        self.case, self.accumulated = case, args["accum_steps"]
        self.num_iterations = len(args["batches"]) // self.accumulated
        self.norms: list[dict[str, Tensor]] = []
        self.iteration = 0
        options = {
            "lr": args["lr"],
            "lr_end": args["lr"],
            "warmup": 0,
            "weight_decay": args["wd"],
            "betas": (0.9, 0.999),
            "clip": 1e9,
            "ema": args["ema_decay"] or 0.0,
        }
        average = fit(
            case.head,
            lambda generator: self.windows(),
            self.loss_of,
            Recipe(iterations=self.num_iterations, **(options | recipe)),
            before_batch=self.begin,
            parts_of=parts_of,
        )
        self.begin(self.num_iterations)
        self.ema_norm = self.norm(dict(average.named_parameters()))

    def begin(self, iteration: int) -> None:
        self.iteration = iteration
        if iteration > 0:
            parameters = dict(self.case.head.named_parameters())
            gradients = {name: p.grad for name, p in parameters.items()}
            published = publish(self.case.table, gradients)
            self.gradients = published
            self.norms.append({"grad": self.norm(gradients), "param": self.norm(parameters)})

    def windows(self) -> list[tuple[int, Window]]:
        first = self.iteration * self.accumulated
        return [(n, self.case.window(n)) for n in range(first, first + self.accumulated)]

    def loss_of(
        self, head: nn.Module, windows: list[tuple[int, Window]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        for number, part in windows:
            self.case.check(number, part, self.case.objective)
        losses = [self.case.loss(head, number, part)[0] for number, part in windows]
        return torch.stack(losses).mean(), {}

    def norm(self, ours: dict[str, Any]) -> Tensor:
        """Return the norm of each published tensor, in the set's order."""
        published = publish(self.case.table, {name: t.detach() for name, t in ours.items()})
        return torch.stack(
            [published[name].norm() for name in self.case.golden.args["param_names"]]
        )

    def check(self) -> None:
        """Compare all norms."""
        golden = self.case.golden
        # The gradient of a key's bias is zero but for rounding, which AdamW scales up.
        names = golden.args["param_names"]
        kept = torch.tensor([not name.endswith("in_proj_bias") for name in names])
        for iteration, norms in enumerate(self.norms):
            prefix = f"batch{(iteration + 1) * self.accumulated - 1}/"
            golden.assert_close(norms["grad"], prefix + "grad_norm", "grad_norm")
            golden.assert_near(norms["param"][kept], golden[prefix + "param_norm"][kept], "param")
        for name in golden.args["full_grads"]:
            golden.assert_close(self.gradients[name], f"{prefix}grad/{name}")
        if golden.args["ema_decay"] is not None:
            golden.assert_near(self.ema_norm[kept], golden[prefix + "ema_norm"][kept], "ema")


@pytest.mark.parametrize("name", SETS)
def test_training_steps_are_those_of_the_original(name):
    Trainer(Case.of(name)).check()


def one_by_one(windows: list[Any]) -> list[list[Any]]:
    return [[window] for window in windows]


def test_gradients_added_up_one_window_after_the_other_are_those_of_the_original():
    Trainer(Case.of("kl"), one_by_one).check()


def test_control_windows_that_are_not_added_up():
    with pytest.raises(AssertionError, match=r"^grad_norm:"):
        Trainer(Case.of("kl"), lambda windows: [windows[-1:]]).check()


@pytest.mark.parametrize(
    ("what", "name", "recipe"),
    [
        ("param", "kl", {"weight_decay": 1.0}),
        ("grad_norm", "kl", {"clip": 1e-3}),
        ("est_feat", "mse", {"lr": 2e-3}),
        ("ema", "mse", {"ema": 0.0}),
    ],
)
def test_control_another_recipe(what, name, recipe):
    case = Case.of(name)
    with pytest.raises(AssertionError, match=f"^{what}:"):
        Trainer(case, **recipe).check()
