"""The shipped models on an NVIDIA GPU: the same pictures as on a CPU, no waiting inside a step, nothing left behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from fakes import logits_of
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut import shipped
from shortcut_pack.shortcut.cuda_graph import Recordings
from shortcut_pack.shortcut.denoiser import Denoiser
from shortcut_pack.shortcut.devices import advice_on_memory
from shortcut_pack.shortcut.generate import Result, num_draws
from shortcut_pack.shortcut.grid import usual_grid
from shortcut_pack.shortcut.models.architecture import Branches, GridModel, Request
from shortcut_pack.shortcut.noise import Noise
from shortcut_pack.shortcut.pipeline import Pipeline, conditioner_of
from shortcut_pack.shortcut.sampler import Trace, sample
from shortcut_pack.shortcut.schedule import Settings, plan
from shortcut_pack.shortcut.settings import usual_settings
from shortcut_pack.shortcut.train import head as training_head
from shortcut_pack.shortcut.train.head import device_of_runs
from shortcut_pack.shortcut.train.learn import HeadPlan, learn
from shortcut_pack.shortcut.train.teacher import teacher_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")
REQUESTS = {"scenes": {"label": "night snow"}, "scenes text": {"prompt": "two pines at dawn"}}
NAMES = tuple(REQUESTS)
NUM_IMAGES = 4


@dataclass(frozen=True)
class Case:
    """A shipped model with its head on one device."""

    pipeline: Pipeline
    conditions: Branches
    settings: Settings
    grid: tuple[int, int]

    @property
    def model(self) -> GridModel:
        return self.pipeline.model.on_grid(*self.grid)

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    def run(self, images: Sequence[int] = range(NUM_IMAGES), **more: Any) -> Result:
        conditions = [c[list(images)] for c in self.conditions]
        return self.pipeline.sample(
            conditions, self.settings, self.grid, seed=3, image_indices=images, **more
        )


def case(name: str, device: str, dtype: torch.dtype = torch.float32) -> Case:
    """16 steps of which 5 are full passes."""
    pipeline = Pipeline.load(name, device=device, dtype=dtype)
    request = Request(**REQUESTS[name])
    settings = replace(usual_settings(pipeline.model_file), num_steps=16, full_steps=5)
    conditions = pipeline.conditioner.conditions(request, NUM_IMAGES)
    return Case(pipeline, conditions, settings, usual_grid(pipeline.model_file))


@pytest.mark.parametrize("name", NAMES)
def test_features_logits_and_predictions_are_those_of_a_cpu(name: str):
    traces: dict[str, list[Trace]] = {}
    for device in ("cpu", "cuda"):
        traces[device] = []
        case(name, device).run(on_step=traces[device].append)
    for here, there in zip(traces["cpu"][:2], traces["cuda"][:2], strict=True):
        assert here.denoised.was_full == there.denoised.was_full
        for expected, found in zip(here.denoised.features, there.denoised.features, strict=True):
            torch.testing.assert_close(found.cpu(), expected, atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(logits_of(there).cpu(), logits_of(here), atol=2e-3, rtol=2e-3)
        assert torch.equal(there.codes_BL.cpu(), here.codes_BL)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_the_pictures_of_a_cpu_but_for_rounding(name: str):
    made = {device: case(name, device) for device in ("cpu", "cuda")}
    codes = {device: made[device].run().codes_BL.cpu() for device in made}
    assert (codes["cpu"] == codes["cuda"]).float().mean() > 0.9
    pixels = [
        made[d].pipeline.vq.decode(codes["cpu"].to(d).unflatten(1, made[d].grid)).cpu()
        for d in made
    ]
    torch.testing.assert_close(*pixels, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_runs_repeat_bit_for_bit_and_leave_the_random_state(name: str, dtype: torch.dtype):
    made, state = case(name, "cuda", dtype), torch.cuda.get_rng_state()
    first = made.run().codes_BL
    assert torch.equal(made.run().codes_BL, first)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert int(first.min()) >= 0 and int(first.max()) < made.model.config.num_codes


def test_an_image_does_not_depend_on_its_batch():
    made = case("scenes", "cuda")
    together = made.run().codes_BL
    alone = torch.cat([made.run([image]).codes_BL for image in range(NUM_IMAGES)])
    assert (alone == together).float().mean() > 0.9  # kernels round by the size of the batch


@pytest.mark.parametrize("accelerator", ["head", "partial"])
def test_a_guidance_branch_on_another_device_changes_the_picture_by_rounding_alone(
    accelerator: str,
):
    made = case("scenes text", "cuda")
    alone = replace(made, pipeline=made.pipeline.with_accelerator(accelerator))
    copies = ((case("scenes text", "cpu").pipeline.model, torch.device("cpu")),)
    shared = replace(alone, pipeline=replace(alone.pipeline, copies=copies))
    assert (shared.run().codes_BL == alone.run().codes_BL).float().mean() > 0.9


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("accelerator", ["head", "partial"])
def test_a_recorded_run_makes_the_codes_of_one_that_is_not(name: str, accelerator: str):
    made = case(name, "cuda")
    made = replace(made, pipeline=made.pipeline.with_accelerator(accelerator))
    recordings = Recordings()
    recorded = replace(made, pipeline=replace(made.pipeline, recordings=recordings))
    for images in ((0, 1), (2, 3), (1, 0)):
        same = recorded.run(images).codes_BL == made.run(images).codes_BL
        assert same.float().mean() > 0.9  # products may be rounded in another way
    assert len(recordings.kept) == 1


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Raises RuntimeError where the host waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", NAMES)
def test_the_host_waits_for_nothing_between_the_first_step_and_the_last(name: str):
    made = case(name, "cuda")
    made.run()  # the first calls of some kernels wait
    pipeline, rules = made.pipeline, made.pipeline.architecture.rules
    steps = plan(made.settings, made.num_tokens, made.num_tokens, rules)
    noise = Noise.draw(0, range(NUM_IMAGES), num_draws(steps), made.num_tokens, "cuda")
    given = [c.to("cuda") for c in made.conditions]
    assert pipeline.accelerator is not None
    denoiser = Denoiser(made.model, given, pipeline.accelerator(made.model, given))
    shape = NUM_IMAGES, made.num_tokens
    codes_BL = torch.zeros(shape, dtype=torch.long, device="cuda")
    is_masked_BL = torch.ones(shape, dtype=torch.bool, device="cuda")
    stopped = []

    def before_the_last(trace: Trace) -> None:
        if trace.step is steps[-1]:
            stopped.append(True)
            torch.cuda.set_sync_debug_mode("default")  # the check for NaN after the loop waits

    with no_waiting():
        sample(denoiser, codes_BL, is_masked_BL, steps, noise, before_the_last)
    assert stopped
    with pytest.raises(RuntimeError), no_waiting():
        codes_BL.sum().item()  # the control


def test_nothing_stays_on_the_device():
    made = case("scenes", "cuda")
    made.run()
    before = torch.cuda.memory_allocated()
    made.run()
    assert torch.cuda.memory_allocated() == before


def test_too_little_memory_says_what_to_do_and_the_next_run_works():
    made = case("scenes", "cuda")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(
        (torch.cuda.memory_reserved() + 2**20) / torch.cuda.get_device_properties(0).total_memory
    )
    try:
        with (
            pytest.raises(RuntimeError, match=r"out of memory\. Use --sequential"),
            advice_on_memory(),
        ):
            torch.zeros(2**30, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    made.run()


def test_a_head_learns_there_as_on_a_cpu():
    model_file = checkpoints.load(shipped.MODEL, kind="model")
    whole = HeadPlan.default(model_file, iterations=10)
    runs = tuple(replace(settings, num_steps=6) for settings in whole.rollouts.runs)
    few = replace(
        whole.rollouts, runs=runs, images_per_run=8, images_per_window=8, runs_kept=2, max_chain=3
    )
    errors = []
    for device in ("cpu", "cuda"):
        network = checkpoints.build(model_file, dtype=torch.float32, device=device)
        teacher = teacher_of(model_file, network, conditioner_of(model_file), device=device)
        head = learn(teacher, model_file, replace(whole, rollouts=few))
        errors.append([x["error"] for x in head.metadata.trained["held_out"]["6 steps"]])
    assert errors[1] == pytest.approx(errors[0], rel=0.02)


def test_runs_are_kept_there_where_they_fit(monkeypatch: pytest.MonkeyPatch):
    model_file = checkpoints.load(shipped.MODEL, kind="model")
    network = checkpoints.build(model_file, dtype=torch.float32, device="cuda")
    teacher = teacher_of(model_file, network, conditioner_of(model_file), device="cuda")
    rollouts = HeadPlan.default(model_file, iterations=10).rollouts
    assert device_of_runs(teacher, rollouts).type == "cuda"
    monkeypatch.setattr(training_head, "memory_of", lambda device: (2**20, 2**40))
    assert device_of_runs(teacher, rollouts).type == "cpu"
