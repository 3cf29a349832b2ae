"""The command `cost`: operations and memory of Lumina-DiMOO in its published sizes, without its weights.

Everything is measured on torch's meta device by the code that runs: operations by torch's counter, memory by the
tensors alive at a time. The floor is arithmetic: as many full passes as asked for without the rows of the output
matrix, a pass of the head in every other step, and logits of codes where tokens are masked. Nothing can be below it
with the same networks.

    B  images    L  image tokens    P  prompt tokens    C  channels    Y, X  pixel rows, columns
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..accelerators.shortcut_head import ShortcutPredictor
from ..denoiser import Denoiser
from ..flops import Operations, count_operations
from ..grid import Grid, check_multiples
from ..live_memory import LiveTensors, fused
from ..models.layout import Bare
from ..models.lumina_dimoo import head as lumina_head
from ..models.lumina_dimoo import transformer as lumina
from ..models.lumina_dimoo import vq as lumina_vq
from ..noise import Noise
from ..sampler import Trace, sample
from ..schedule import Settings, plan

# Source: facts of the published files (README.md "Published weights"); config.json there is authoritative.
MODEL = lumina.Config(
    width=4096,
    depth=32,
    num_heads=32,
    num_kv_heads=32,
    mlp_width=12288,
    num_text_ids=126_356,
    num_codes=8192,
    rope_theta=lumina.ROPE_THETA,
    norm_eps=lumina.NORM_EPS,
)
HEAD = lumina_head.Config(
    model_width=4096,
    width=2048,
    num_blocks=1,
    num_heads=32,
    num_kv_heads=32,
    mlp_width=12288,
    rope_theta=lumina.ROPE_THETA,
    norm_eps=lumina.NORM_EPS,
    has_time=True,
    sees_new=True,
)
VQ = lumina_vq.Config((128, 256, 256, 512, 768), 2, 64, 8192, 32)
UNCONDITIONAL = 14  # tokens of the prompt that says nothing
SETTINGS = Settings(**lumina.FORMAT.defaults)
T, MB, GB = 1e12, 1e6, 1e9


def add_parser(commands: Any) -> None:
    """Adds `cost` to the command line."""
    parser = commands.add_parser(
        "cost",
        help="operations and memory of Lumina-DiMOO",
        description="Prints what Lumina-DiMOO takes, counted without its weights, as Markdown tables.",
    )
    parser.add_argument("--width", type=int, default=1024, help="pixels")
    parser.add_argument("--height", type=int, default=1024, help="pixels")
    parser.add_argument("--steps", type=int, default=SETTINGS.num_steps)
    parser.add_argument(
        "--full-steps",
        type=int,
        nargs="+",
        default=[preset.num_full for preset in lumina.FORMAT.presets.values()],
        help="full passes with a head; a row for each",
    )
    parser.add_argument("--prompt-tokens", type=int, default=60, help="with the system prompt")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the tables. Returns 0."""
    check_multiples(options.width, options.height, VQ.downscale)
    grid = options.height // VQ.downscale, options.width // VQ.downscale
    prompts = [ids(1, length) for length in (options.prompt_tokens, UNCONDITIONAL)]
    print(f"Lumina-DiMOO, one image of {options.width} x {options.height} pixels with guidance.\n")
    for line in operations_table(grid, prompts, options.steps, options.full_steps):
        print(line, flush=True)
    print()
    for line in memory_table(grid, prompts):
        print(line, flush=True)
    return 0


def operations_table(
    grid: Grid, prompts: Sequence[Tensor], num_steps: int, full_steps: Sequence[int]
) -> Iterator[str]:
    """A Markdown table: vanilla, then a row for each number of full passes. In 10^12 operations."""
    model, head = shapes(lumina.LuminaDiMOO, MODEL), shapes(lumina_head.LuminaHead, HEAD)
    yield (
        "| steps | full | full passes | head | logits | rest | total, TFLOP | floor | above it | of vanilla |"
    )
    yield "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    vanilla = 0
    for num_full in (num_steps, *full_steps):
        settings = replace(SETTINGS, num_steps=num_steps, full_steps=num_full)
        used = head if num_full < num_steps else None
        found = count_operations(model, used, settings, prompts, grid)
        least = floor(settings, prompts, grid).total
        total = found.total + found.rest
        vanilla = vanilla or total
        parts = (found.full, found.head, found.logits, found.rest, total, least)
        figures = " | ".join(f"{part / T:.1f}" for part in parts)
        yield (
            f"| {num_steps} | {num_full} | {figures} | {100 * (total / least - 1):.2f} % | "
            f"{100 * total / vanilla:.1f} % |"
        )


def floor(settings: Settings, prompts: Sequence[Tensor], grid: Grid) -> Operations:
    """What a run takes at least, by arithmetic: two operations for each multiply-add, nothing else."""
    rows, columns = grid
    lengths = [prompt_BP.shape[1] + rows * (columns + 1) + 4 for prompt_BP in prompts]
    steps = plan(settings, rows * columns, rows * columns)
    per_full = sum(MODEL.depth * _block(length, length, length, MODEL) for length in lengths)
    in_head = sum(
        _head_pass(lengths, prompts[0].shape[1], before.num_revealed)
        for before, step in pairwise(steps)
        if not step.is_full
    )
    num_masked = sum(step.num_masked for step in steps)
    return Operations(
        full=2 * per_full * sum(step.is_full for step in steps),
        head=2 * in_head,
        logits=2 * num_masked * MODEL.width * MODEL.num_codes,
        rest=0,
    )


def _block(num_queries: int, num_context: int, num_keys: int, config: Any) -> int:
    """Multiply-adds of a block: queries and output, keys and values of a context, attention, SwiGLU."""
    width = config.width
    projections = 2 * num_queries * width**2 + 2 * num_context * width**2
    attention = 2 * num_queries * num_keys * width
    return projections + attention + 3 * num_queries * width * config.mlp_width


def _head_pass(lengths: Sequence[int], num_prompt: int, num_revealed: int) -> int:
    """Multiply-adds of a pass of the head: to the first branch its prompt is new too."""
    width, total = HEAD.width, 0
    for branch, length in enumerate(lengths):
        num_new = num_revealed + (num_prompt if branch == 0 else 0)
        total += (2 * length + num_new) * HEAD.model_width * width
        total += HEAD.num_blocks * _block(length, num_new, num_new, HEAD)
        total += HEAD.num_blocks * _block(length, length, length, HEAD)
    middle = round((256 * width) ** 0.5)
    return total + 256 * middle + middle * width + 2 * width**2


def memory_table(grid: Grid, prompts: Sequence[Tensor]) -> Iterator[str]:
    """A Markdown table: the most memory above the weights, in each part of a run. In megabytes."""
    yield "| above the weights, MB | branches at once | one at a time |"
    yield "|---|--:|--:|"
    at_once, in_turn = (run_peaks(grid, prompts, is_sequential=value) for value in (False, True))
    for part in at_once:
        yield f"| {part} | {at_once[part] / MB:.0f} | {in_turn[part] / MB:.0f} |"
    yield f"| **run** | **{max(at_once.values()) / MB:.0f}** | **{max(in_turn.values()) / MB:.0f}** |"
    for part, peak in vq_peaks(grid).items():
        yield f"| {part} | {peak / MB:.0f} | |"
    networks = {
        "model": shapes(lumina.LuminaDiMOO, MODEL),
        "head": shapes(lumina_head.LuminaHead, HEAD),
        "VQ model": shapes(lumina_vq.LuminaVQ, VQ, torch.float32),
    }
    sizes = [
        f"{name} {sum(p.nbytes for p in net.parameters()) / GB:.2f} GB ({str(net.dtype).removeprefix('torch.')})"
        for name, net in networks.items()
    ]
    yield f"\nWeights: {', '.join(sizes)}."


@torch.no_grad()
def run_peaks(grid: Grid, prompts: Sequence[Tensor], *, is_sequential: bool) -> dict[str, int]:
    """Bytes above the weights, in bfloat16, at most in each part of a step; with what else is kept then."""
    # Blocks come one after the other: more of them need no more memory at a time.
    network = shapes(lumina.LuminaDiMOO, replace(MODEL, depth=2))
    model = network.on_grid(*grid, is_sequential=is_sequential)
    head = shapes(lumina_head.LuminaHead, HEAD)
    num_tokens = model.num_tokens
    settings = replace(SETTINGS, full_steps=SETTINGS.num_steps // 2)  # every other step
    steps = plan(settings, num_tokens, num_tokens)
    noise = Noise(*torch.zeros(2, len(steps), 1, num_tokens, device="meta").unbind())
    predictor = ShortcutPredictor(head, model, prompts)
    with LiveTensors(network, head) as memory:
        watched: Any = SimpleNamespace(
            features=memory.during("full pass", model.features),
            image_places=model.image_places,
            logits=memory.during("logits, guidance, choice of tokens", model.logits),
        )
        watched_predictor: Any = SimpleNamespace(
            observe=predictor.observe, predict=memory.during("pass of the head", predictor.predict)
        )
        denoiser = Denoiser(watched, prompts, watched_predictor)
        with contextlib.suppress(_Enough):
            codes_BL = ids(1, num_tokens)
            sample(denoiser, codes_BL, codes_BL.bool(), steps, noise, _stop_after(3))
    return memory.peaks


class _Enough(Exception):
    """Ends a run: later steps need no more, and its last line reads a value."""


def _stop_after(num_steps: int) -> Callable[[Trace], None]:
    def on_step(trace: Trace) -> None:
        if trace.step.index == num_steps - 1:
            raise _Enough

    return on_step


@torch.no_grad()
def vq_peaks(grid: Grid) -> dict[str, int]:
    """Bytes above the weights that the VQ model takes in float32, before and after a run."""
    vq = shapes(lumina_vq.LuminaVQ, VQ, torch.float32)
    pixels_BCYX = torch.zeros(1, 3, *(VQ.downscale * side for side in grid), device="meta")
    with LiveTensors(vq) as memory:
        memory.during("VQ model, picture to codes", vq.encode)(pixels_BCYX)
        memory.during("VQ model, codes to picture", vq.decode)(ids(1, *grid))
    return memory.peaks


def shapes(network: type[nn.Module], config: Any, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A network that has shapes but no values."""
    net = network(config, dtype=dtype, device="meta", operations=Bare, attention=fused)
    return net.requires_grad_(False)


def ids(*shape: int) -> Tensor:
    """Tokens without values."""
    return torch.zeros(*shape, dtype=torch.long, device="meta")
