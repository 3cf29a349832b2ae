"""Speed against Quality: what its grid, chart and table say, and what of it is made once only."""

# ruff: noqa: E402 - ComfyUI, or what stands in for it, must be importable first
# ruff: noqa: F811 - fixtures are imported and then named as arguments

from __future__ import annotations

import gc
from types import SimpleNamespace

import comfy_stubs
import pytest
import torch

comfy_stubs.install()
import comfy.model_management as mm
from shortcut_pack.nodes import compare, native, progress
from shortcut_pack.nodes import run as runs
from shortcut_pack.nodes.accelerate import Accelerator
from shortcut_pack.nodes.compare import SpeedQuality
from shortcut_pack.nodes.load import LoadMIGM
from shortcut_pack.shortcut import shipped
from test_nodes import GRID, Interrupted, builders, cond, empty, files, run  # noqa: F401
from test_nodes_progress import ScriptedClock

LEFT, TOP, SIDE, STEP_X = 96, 52, 192, 200  # pixels of the grid


@pytest.fixture
def wired(files, monkeypatch):
    """The inputs of the node, as ComfyUI hands them over again while nothing before it changes."""
    monkeypatch.setattr(compare, "SHEETS", {})
    model, vae, _ = LoadMIGM.execute(shipped.NAME, "auto", "float32").result
    fingerprint = model.model.checkpoint.fingerprint
    head = native.build_head(builders.head(model_fingerprint=fingerprint), "float32")
    return {
        "model": model,
        "vae": vae,
        "head": head,
        "positive": cond(),
        "latent_image": empty(),
    }


@pytest.fixture
def made(monkeypatch):
    """Seeds and full steps of the runs that are made."""
    found, generate = [], runs.generate

    def counted(model, conditions, settings, *others, **options):
        found.append((options["seed"], settings.full_steps))
        return generate(model, conditions, settings, *others, **options)

    monkeypatch.setattr(runs, "generate", counted)
    return found


def compared(wired, full_steps="4, 2", seeds="1, 2", steps=6, **changes):
    """(grid, chart, table)"""
    texts = {"full_steps": full_steps, "seeds": seeds, "steps": steps}
    return SpeedQuality.execute(**(wired | texts | changes)).result


def test_a_column_for_each_number_of_full_steps_a_row_for_each_seed(wired):
    grid, chart, _ = compared(wired)
    assert grid.shape == (1, 52 + 2 * (SIDE + 30), LEFT + 3 * STEP_X, 3)
    assert chart.shape[0] == 1 and chart.shape[3] == 3
    cells = [cell for sheet in compare.SHEETS.values() for cell in sheet.cells.values()]
    assert cells and {cell.bytes_YX3.dtype for cell in cells} == {torch.uint8}
    latent = {"choice_temperature": 7.0, "cfg": 2.8}
    for column, options in enumerate(({}, {"head": wired["head"], "full_steps": 4})):
        for row, seed in enumerate((1, 2)):
            alone = run(wired["model"], seed=seed, **latent, **options)
            pixels = wired["vae"].decode(alone["samples"])[0]
            top, left = TOP + row * (SIDE + 30), LEFT + column * STEP_X
            found = grid[0, top : top + SIDE : SIDE // 8, left : left + SIDE : SIDE // 8]
            assert torch.allclose(found, pixels, atol=1 / 254), (column, row)


def test_one_more_column_costs_one_column(wired, made):
    compared(wired)
    assert made == [(1, None), (2, None), (1, 4), (2, 4), (1, 2), (2, 2)]
    made.clear()
    grid = compared(wired, full_steps="4, 3, 2")[0]
    assert made == [(1, 3), (2, 3)]
    made.clear()
    assert torch.equal(compared(wired, full_steps="4, 3, 2")[0], grid) and made == []
    compared(wired, seeds="2, 5")
    assert made == [(5, None), (5, 4), (5, 2)]


@pytest.mark.parametrize("changed", ["positive", "latent_image", "negative"])
def test_other_inputs_are_made_anew(wired, made, changed):
    compared(wired)
    made.clear()
    compared(wired, **{changed: {"latent_image": empty()}.get(changed, cond(2))})
    assert len(made) == 6


def test_a_second_head_has_columns_of_its_own(wired, made):
    other = native.build_head(builders.head(), "float32")
    grid, _, table = compared(wired, other_head=other)
    assert grid.shape[2] == LEFT + 5 * STEP_X and len(made) == 10
    assert len([line for line in table.splitlines() if " | 2 | 6 | " in line]) == 2


def test_an_accelerator_is_compared_by_its_name(wired, made):
    partial, again = (Accelerator.execute("reuse", "as computed").result[0] for _ in range(2))
    table = compared(wired, other_head=partial, seeds="1")[2]
    assert "| reuse | 2 | 6 | " in table and len(made) == 5
    compared(wired, other_head=again, seeds="1")
    assert len(made) == 5, "the same accelerator made anew"


def test_the_same_wired_twice_has_the_same_pictures_twice(wired, made):
    reuse = Accelerator.execute("reuse", "as computed").result[0]
    grid, _, table = compared(wired, head=reuse, other_head=reuse, seeds="1", full_steps="2")
    assert len(made) == 2 and grid.shape[2] == LEFT + 3 * STEP_X
    lines = [line.split("|") for line in table.splitlines() if "reuse (" in line]
    assert [line[1].strip() for line in lines] == ["reuse (1)", "reuse (2)"]
    assert lines[0][2:] == lines[1][2:]


def test_an_interrupt_keeps_what_was_made(wired, made, monkeypatch):
    def interrupt():
        if len(made) == 3:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(mm, "throw_exception_if_processing_interrupted", interrupt)
        with pytest.raises(Interrupted):
            compared(wired)
    made.clear()
    compared(wired)
    assert made == [(1, 4), (2, 4), (1, 2), (2, 2)]


def test_the_table_says_what_was_measured(wired, monkeypatch):
    monkeypatch.setattr(progress, "StepClock", ScriptedClock)
    table = compared(wired, full_steps="3")[2].splitlines()
    assert table[2] == "| vanilla | 6 | 6 | 24.00 | 1.00 | 0.00 ± 0.00 % |"
    assert " | 3 | 6 | 15.00 | 1.60 | " in table[3], "3 full passes of 4 s, 3 predictions of 1 s"
    assert table[-1].startswith("Means over 2 seeds.")
    assert "±" not in compared(wired, full_steps="3", seeds="1")[2].splitlines()[3]


def test_a_run_of_full_passes_alone_is_vanilla(wired):
    last = compared(wired, full_steps="6")[2].splitlines()[3]
    assert last.endswith("| 0.00 ± 0.00 % |")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"full_steps": "8, x"}, r"full_steps must be whole numbers.*got '8, x'"),
        ({"seeds": " "}, "seeds must be whole numbers"),
        ({"full_steps": "7"}, "full steps must be between 1 and steps"),
        ({"head": None}, "head is not connected"),
        ({"vae": None}, "vae is not connected"),
        ({"latent_image": empty(2)}, "holds 2 images, expected one"),
        ({"seeds": ",".join(map(str, range(100)))}, "at most 256"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_made(wired, made, changes, message):
    with pytest.raises(ValueError, match=message):
        compared(wired, **changes)
    assert made == []


def test_what_is_kept_has_a_bound_and_the_newest_stay(wired, made, monkeypatch):
    monkeypatch.setattr(compare, "MOST_CELLS", 6)
    for seeds in ("1, 2", "3", "4, 5"):
        compared(wired, full_steps="4", seeds=seeds)
    (sheet,) = compare.SHEETS.values()
    assert [seed for *_, seed in sheet.cells] == [3, 3, 4, 5, 4, 5]
    made.clear()
    compared(wired, full_steps="4", seeds="1, 3")
    assert {seed for seed, _ in made} == {1}


def test_the_pictures_of_a_model_that_is_gone_go_too(wired, monkeypatch):
    nodes = iter(("1", "2"))
    running = lambda: SimpleNamespace(node_id=next(nodes))  # noqa: E731
    monkeypatch.setattr(compare, "get_executing_context", running)
    compared(wired, full_steps="4", seeds="1")
    other = {**wired, "vae": LoadMIGM.execute(shipped.NAME, "auto", "float32").result[1]}
    wired.pop("vae")
    gc.collect()
    compared(other, full_steps="4", seeds="1")
    assert [*compare.SHEETS] == ["2"]


def test_the_cells_keep_no_model_alive(wired):
    compared(wired)
    (sheet,) = compare.SHEETS.values()
    wired.clear()
    gc.collect()
    assert [owner() for owner in sheet.owners] == [None, None]
