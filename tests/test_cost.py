"""What the command `cost` says of the published sizes: FLOPs against arithmetic, memory against its bounds.

The arithmetic is a count by hand of Lumina-DiMOO: as many full passes as asked for without the rows of the output
matrix, a pass of the head in every other step, and logits of codes where tokens are masked. Nothing can be below it
with the same networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from shortcut_pack.shortcut import sampler
from shortcut_pack.shortcut.__main__ import main
from shortcut_pack.shortcut.accelerators.choice import head_bytes
from shortcut_pack.shortcut.cli import cards, cost
from shortcut_pack.shortcut.flops import Flops, count_flops
from shortcut_pack.shortcut.models import bands, lumina_dimoo
from shortcut_pack.shortcut.schedule import Settings, plan

ARCHITECTURE = lumina_dimoo.ARCHITECTURE
SIZE = ARCHITECTURE.sizes["lumina-dimoo"]
GRID = (64, 64)
LENGTHS = (60, 14)  # tokens of the prompt, and of the one that says nothing
MB = 1e6


def floor(settings: Settings) -> Flops:
    """What a run takes at least: two operations for each multiply-add, nothing else."""
    rows, columns = GRID
    lengths = [num_prompt + rows * (columns + 1) + 4 for num_prompt in LENGTHS]
    steps = plan(settings, rows * columns, rows * columns, ARCHITECTURE.rules)
    model = SIZE.model
    per_full = sum(model.depth * block(length, length, length, model) for length in lengths)
    in_head = sum(
        head_pass(lengths, before.num_revealed)
        for before, step in pairwise(steps)
        if not step.is_full
    )
    return Flops(
        full=2 * per_full * sum(step.is_full for step in steps),
        head=2 * in_head,
        logits=2 * sum(step.num_masked for step in steps) * model.width * model.num_codes,
        rest=0,
    )


def block(num_queries: int, num_context: int, num_keys: int, config: Any) -> int:
    """Multiply-adds of a block: queries and output, keys and values of a context, attention, SwiGLU."""
    width = config.width
    projections = 2 * num_queries * width**2 + 2 * num_context * width**2
    attention = 2 * num_queries * num_keys * width
    return projections + attention + 3 * num_queries * width * config.mlp_width


def head_pass(lengths: Sequence[int], num_revealed: int) -> int:
    """Multiply-adds of a pass of the head: to the first branch its prompt is new too."""
    head = SIZE.head
    width, total = head.width, 0
    for branch, length in enumerate(lengths):
        num_new = num_revealed + (LENGTHS[0] if branch == 0 else 0)
        total += (2 * length + num_new) * head.model_width * width
        total += head.num_blocks * block(length, num_new, num_new, head)
        total += head.num_blocks * block(length, length, length, head)
    middle = round((256 * width) ** 0.5)
    return total + 256 * middle + middle * width + 2 * width**2


def test_a_run_takes_what_arithmetic_says_and_hardly_more():
    published = cost.Published.named("lumina-dimoo")
    settings = replace(ARCHITECTURE.settings, full_steps=11)
    found = count_flops(
        published.model,
        published.head,
        settings,
        SIZE.conditions(LENGTHS[0]),
        GRID,
        rules=ARCHITECTURE.rules,
    )
    least = floor(settings)
    assert replace(found, rest=0) == least
    assert 0 < found.rest < 0.01 * least.total
    # Control: logits of all ids everywhere in full passes, as the original makes them, would be seen.
    length = sum(num_prompt + 64 * 65 + 4 for num_prompt in LENGTHS)
    waste = 11 * 2 * length * SIZE.model.width * SIZE.model.vocabulary
    assert found.total + found.rest + waste > 1.01 * least.total


# Measured, and 1 % more: without logits of all 4,096 tokens, features kept too long, or a third hidden activation.
LIMITS = {
    False: {"full pass": 702, "pass of the head": 805, "logits, guidance, choice of tokens": 412},
    True: {"full pass": 385, "pass of the head": 506, "logits, guidance, choice of tokens": 412},
}


@pytest.mark.parametrize("is_sequential", LIMITS)
def test_memory_above_the_weights_at_1024_pixels(is_sequential: bool):
    published = cost.Published.named("lumina-dimoo")
    conditions = SIZE.conditions(LENGTHS[0])
    found = cost.run_peaks(published, GRID, conditions, is_sequential=is_sequential)
    limits = LIMITS[is_sequential]
    assert found.keys() == limits.keys()
    assert all(found[part] <= limits[part] * MB for part in found), found
    # What a run is thought to need, by which it is told how many images go at once.
    model = published.model.on_grid(*GRID, is_sequential=is_sequential)
    lengths = [model.sequence_length(condition) for condition in conditions]
    thought = head_bytes("head", published.head, 1, lengths, is_sequential=is_sequential)
    assert 0.9 < found["pass of the head"] / thought <= 1


def test_a_draw_of_many_pictures_takes_little_memory(monkeypatch: pytest.MonkeyPatch):
    """Logits of 16 pictures of 1024 x 1024 are 2.1 GB, and a draw would take four such."""
    published = cost.Published.named("lumina-dimoo")
    conditions = [one[[0] * 16] for one in SIZE.conditions(LENGTHS[0])]
    features = 16 * sum(n + 64 * 65 + 4 for n in LENGTHS) * SIZE.model.width * 2

    def above_features() -> int:
        found = cost.run_peaks(published, GRID, conditions, is_sequential=True)
        return (
            found["logits, guidance, choice of tokens"] - 2 * features
        )  # of this step and of the full pass

    assert above_features() < 0.4e9
    monkeypatch.setattr(sampler, "AT_ONCE", 2**40)
    assert above_features() > 8.5e9


def test_decoding_1024_pixels_takes_less_than_2_gb(monkeypatch: pytest.MonkeyPatch):
    vq: Any = cost.without_values(ARCHITECTURE.vqs[0], SIZE.vq, torch.float32)
    assert max(cost.vq_peaks(vq, GRID).values()) < 1.8e9
    # Control: whole maps take more.
    monkeypatch.setattr(bands, "LARGE", 2**62)
    assert max(cost.vq_peaks(vq, GRID).values()) > 2.6e9


def test_each_card_gets_the_most_exact_weights_that_fit(capsys: pytest.CaptureFixture[str]):
    small = ["--width", "64", "--height", "32", "--steps", "4", "--full-steps", "2"]
    assert main(["cost", "lumina-dimoo", *small]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    found = {(int(r[0]), r[1]): r[2:] for r in rows if len(r) == 7 and r[0].isdecimal()}
    assert {card for card, _ in found} == {6, 8, 10, 12, 16, 24}
    chosen = {card: weights for (card, name), (weights, *_) in found.items() if name == "head"}
    assert chosen == {
        6: "nvfp4",
        8: "nvfp4",
        10: "int8_convrot",
        12: "int8_convrot",
        16: "bfloat16",
        24: "bfloat16",
    }
    for (card, _), (_, _, sampling, _, in_main) in found.items():
        assert float(sampling) <= (card - 1) * 2**30 / 1e9 + 0.05
        assert float(in_main) == 0
    # 8-bit weights and the head, by their numbers of values.
    model = SIZE.model
    blocks = model.depth * (4 * model.width + 3 * model.mlp_width) * model.width
    rest = (model.num_text_ids + 2 * model.num_codes) * model.width * 2
    least = (blocks + rest) / 1e9 + 0.44
    assert least < float(found[10, "head"][2]) < least + 0.2


def test_what_a_card_has_no_room_for_lies_in_main_memory():
    model: Any = cost.without_values(ARCHITECTURE.model, SIZE.model, torch.bfloat16)
    weights, layer = (f(ARCHITECTURE.model, model) for f in (cards.format_bytes, cards.layer_bytes))
    need = cards.Need("any", fixed=2e9, run=2e9, run_in_turn=1e9)
    rows = [
        line.strip("| ").split(" | ")
        for line in cards.cards_table(ARCHITECTURE.model, model, [need], 0)
    ]
    found = next(row for row in rows if row[0] == "6")
    assert found[2:4] == ["nvfp4", "in turn"]
    total = weights["nvfp4"] + need.fixed + need.run_in_turn + layer
    assert float(found[-1]) == pytest.approx((total - 5 * 2**30) / 1e9, abs=0.06)


def test_the_tables(capsys: pytest.CaptureFixture[str]):
    small = ["--width", "64", "--height", "32", "--steps", "4", "--full-steps", "2"]
    assert main(["cost", "lumina-dimoo", *small]) == 0
    said = capsys.readouterr().out
    assert said.startswith("lumina-dimoo, one image of 64 x 32 pixels")
    rows = [line.split(" | ") for line in said.splitlines() if line.startswith("| 4 | ")]
    assert [row[1] for row in rows] == ["4", "2"]
    assert rows[0][-1] == "100.0 % |" and float(rows[1][-1].split()[0]) < 60
    assert "Weights: model 15.13 GB (bfloat16)" in said


def test_few_steps_leave_out_presets_with_more_full_passes(capsys: pytest.CaptureFixture[str]):
    small = ["--width", "64", "--height", "32"]
    fewest = min(preset.num_full for preset in ARCHITECTURE.presets.values())
    for steps, expected in ((fewest, ["vanilla", "head"]), (fewest - 1, ["vanilla"])):
        assert main(["cost", "lumina-dimoo", *small, "--steps", f"{steps}"]) == 0
        lines = capsys.readouterr().out.splitlines()
        rows = [line.split(" | ") for line in lines if line.startswith(f"| {steps} | ")]
        rows = [row for row in rows if len(row) == 12]
        assert [row[2] for row in rows] == expected


def test_an_accelerator_has_a_row_where_no_preset_leaves_room(capsys: pytest.CaptureFixture[str]):
    for size in ("maskgit-512", "mmada-parallel-a"):
        assert main(["cost", size, "--steps", "6", "--accelerator", "partial"]) == 0
        assert "| partial |" in capsys.readouterr().out


def test_steps_that_reveal_nothing_read_nothing(capsys: pytest.CaptureFixture[str]):
    # Of 64 steps for 16 tokens at most 16 run.
    small = ["--width", "64", "--height", "64", "--full-steps", "64", "--accelerator", "reuse"]
    assert main(["cost", "lumina-dimoo", *small]) == 0
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    vanilla, all_full = (line for line in lines if line[0] == "| 64" and len(line) == 12)
    assert vanilla[3:] == all_full[3:]
    blocks = SIZE.model.depth * (4 * SIZE.model.width + 3 * SIZE.model.mlp_width)
    weights = 2 * (blocks + SIZE.model.num_codes) * SIZE.model.width / 1e12
    assert 8 * weights < float(vanilla[10]) <= 16 * weights + 0.01


def test_an_image_of_one_token(capsys: pytest.CaptureFixture[str]):
    assert (
        main(["cost", "lumina-dimoo", "--width", "16", "--height", "16", "--full-steps", "1"]) == 0
    )
    assert "**run**" in capsys.readouterr().out


def test_a_size_off_the_grid(capsys: pytest.CaptureFixture[str]):
    assert main(["cost", "lumina-dimoo", "--width", "1000"]) == 1
    assert "The nearest sizes are 992 or 1008 wide and 1024 high" in capsys.readouterr().err


def test_what_accelerators_keep_and_read_is_in_the_table(capsys: pytest.CaptureFixture[str]):
    small = ["--width", "64", "--height", "32", "--steps", "4", "--full-steps", "2"]
    names = ("reuse", "partial", "partial+float8")
    assert main(["cost", "lumina-dimoo", *small, "--accelerator", *names]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 4 | 2 ")]
    rows = {cells[2]: cells for cells in (line.strip("| ").split(" | ") for line in lines)}
    assert tuple(rows) == names
    # Keys and values of the condition's branch: a prompt of 60 tokens, 2 rows of 4 codes and a newline, 4 around them.
    kept = 2 * (60 + 14) * SIZE.model.depth * SIZE.model.width * 2 / 1e9
    assert [rows[name][9] for name in names] == ["0.00", f"{kept:.2f}", f"{kept / 2:.2f}"]
    # Two passes of the model's weights, which are those of its blocks and of the codes; partial ones read them too.
    blocks = SIZE.model.depth * (4 * SIZE.model.width + 3 * SIZE.model.mlp_width)
    weights = 2 * (blocks + SIZE.model.num_codes) * SIZE.model.width / 1e12
    assert rows["reuse"][10] == f"{2 * weights:.2f}"
    assert rows["partial"][10] == f"{4 * weights + 2 * kept / 1e3:.2f}"
