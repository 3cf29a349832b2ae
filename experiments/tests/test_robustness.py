"""The fuzzer and the soak: what they call a fault, that a number makes the same case again, what their tables say."""

from __future__ import annotations

import builtins
import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from experiments.__main__ import main
from experiments.robustness import fuzz, graphs, guard, mutations, previews, samples, soak
from experiments.robustness.guard import Limits, Verdict
from experiments.robustness.kinds import Kind, kinds
from experiments.robustness.server import ERROR, INTERRUPTED, SUCCESS, Answer, _answer

LIMITS = Limits(gigabytes=0.3)
SHORT = Limits(seconds=0.3)
INTERFACE = Path(__file__).resolve().parents[2] / "tests" / "node_interface.json"


def says(text: str, status: int) -> int:
    print(text, file=sys.stderr)
    return status


def wrote(path: str) -> int:
    Path(path).write_text("x")
    return 0


def raised() -> int:
    raise KeyError("x")


def endless() -> int:
    while True:
        pass


ACTIONS: dict[str, tuple[Any, str]] = {
    "accepted": (lambda: says("fine", 0), ""),
    "refused": (lambda: says("error: file.x is damaged", 1), ""),
    "no file is named": (lambda: says("error: damaged", 1), guard.NAMELESS),
    "exception": (raised, guard.TRACEBACK),
    "logged traceback": (lambda: says("Traceback (most recent call last):", 0), guard.TRACEBACK),
    "signal": (lambda: os.kill(os.getpid(), signal.SIGTERM), guard.CRASH),
    "exit": (lambda: os._exit(3), guard.CRASH),
    "endless": (endless, guard.HANG),
    "memory": (lambda: len(bytearray(10**10)), guard.MEMORY),
    "shell": (lambda: os.system("true"), guard.CODE),
    "program": (lambda: subprocess.run(["true"]).returncode, guard.CODE),
    "connection": (lambda: socket.create_connection(("127.0.0.1", 9)).close(), guard.CODE),
    "code": (lambda: vars(builtins)["exec"]("x = 1") or 0, guard.CODE),
    "written inside": (lambda: wrote("inside"), ""),
    "written outside": (lambda: wrote("../outside"), guard.CODE),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_each_fault_is_found(name: str, tmp_path: Path) -> None:
    action, expected = ACTIONS[name]
    (tmp_path / "case").mkdir()
    verdict = guard.run(
        action, tmp_path / "case", ("file.x",), SHORT if name == "endless" else LIMITS
    )
    assert verdict.fault == expected, verdict
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("damage", ("bytes", "json", "pickle", "zip", "safetensors"))
def test_a_number_makes_the_same_damage_again(damage: str, tmp_path: Path) -> None:
    samples.write(tmp_path, ["classes"])
    value = {"a": [1, {"b": 0.5}], "c": "x", "d": None}
    function, data = {
        "bytes": (mutations.damaged_bytes, b"abc" * 20),
        "json": (mutations.damaged_json, value),
        "pickle": (mutations.damaged_pickle, b"\x80\x02}(K\x01X\x01\x00\x00\x00au."),
        "zip": (mutations.damaged_bytes, b""),
        "safetensors": (
            mutations.damaged_safetensors,
            (tmp_path / "classes" / "head.safetensors").read_bytes(),
        ),
    }[damage]
    made: list[Any] = [[function(Random(i), data) for i in range(60)] for _ in range(2)]
    assert made[0] == made[1]
    assert len(set(made[0])) > (1 if damage == "zip" else 20)
    assert value == {"a": [1, {"b": 0.5}], "c": "x", "d": None}


def test_kinds_have_their_own_names_and_samples() -> None:
    found = kinds()
    assert len({kind.name for kind in found}) == len(found)
    assert {kind.sample for kind in found} <= {"classes", "text", "published", "shards", "clip"}


def test_a_fault_is_counted_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoilt(random: Random, data: bytes) -> bytes:
        return data if random.random() < 0.5 else data[:20]

    commands = ("info FILE",)
    good = Kind("good", "classes", spoilt, ("head.safetensors",), commands)
    monkeypatch.setattr(fuzz, "kinds", lambda: [good])
    words = ["fuzz", "--cases", "8", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    row = capsys.readouterr().out.splitlines()[2]
    assert row.startswith("| good | 8 | ") and row.endswith(" | 0 | 0 | 0 | 0 | 0 | 0 |")
    monkeypatch.setattr(guard, "_frame", lambda text: "x.py:1")
    monkeypatch.setattr("shortcut.cli.files.run_info", None)
    bad = Kind("bad", "classes", lambda random, data: data[:20], ("head.safetensors",), commands)
    monkeypatch.setattr(fuzz, "prepare", lambda made, *_: samples.write(made, ["classes"]))
    monkeypatch.setattr(fuzz, "kinds", lambda: [bad])
    assert main([*words[:2], "3", *words[3:]]) == 1
    assert "| bad | 3 | 0 | 0 | 0 | 0 | 0 | 3 | 0 | 0 |" in capsys.readouterr().out
    kept = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in kept] == ["traceback-bad-0", "traceback-bad-1"]
    assert "--kind 'bad' --first 0 --cases 1" in (kept[0] / "command.txt").read_text()


def test_a_case_counts_in_its_columns() -> None:
    assert fuzz.columns_of(Verdict("", 0, "")) == ("cases", "accepted")
    assert fuzz.columns_of(Verdict(guard.NAMELESS, 1, "")) == ("cases", "refused", guard.NAMELESS)
    assert fuzz.columns_of(Verdict(guard.HANG, None, "")) == ("cases", guard.HANG)
    assert fuzz.summary({"a": Counter(cases=2, crash=1)}).splitlines()[-1].startswith("| all | 2 |")


def made_graphs() -> list[graphs.Graph]:
    some = [make(Random(i)) for make in (graphs.sound, graphs.wrong) for i in range(40)]
    return [*some, *(graphs.training(Random(i), "x") for i in range(5)), *graphs.references()]


def widgets_of(inputs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the inputs of a node, and those that come with an option, such as preset.steps."""
    for item in inputs:
        yield item
        if isinstance(item.get("options"), dict):
            for widget in (w for option in item["options"].values() for w in option):
                yield {**widget, "id": f"{item['id']}.{widget['id']}"}


def test_graphs_fit_the_nodes() -> None:
    interface = json.loads(INTERFACE.read_text())
    for graph in made_graphs():
        for node in graph.values():
            for value in node["inputs"].values():
                assert not isinstance(value, list) or value[0] in graph
            if (described := interface.get(node["class_type"])) is not None:
                known = {item["id"]: item for item in widgets_of(described["inputs"])}
                needed = {name for name, item in known.items() if not item["optional"]}
                assert needed <= node["inputs"].keys() <= known.keys()


def test_graphs_are_the_same_by_number() -> None:
    assert made_graphs() == made_graphs()


def test_how_a_prompt_counts() -> None:
    refused = Answer(ERROR, "ValueError", "words")
    assert soak.outcome_of("wrong", refused) == soak.REFUSED
    assert soak.outcome_of("wrong", Answer(ERROR, "KeyError", "'x'")) == soak.FAILED
    assert soak.outcome_of("wrong", Answer(SUCCESS)) == soak.FAILED
    assert soak.outcome_of("sound", refused) == soak.FAILED
    assert soak.outcome_of("sound", Answer(INTERRUPTED)) == soak.FAILED
    assert soak.outcome_of("interrupted", Answer(INTERRUPTED)) == soak.STOPPED
    assert soak.outcome_of("interrupted", Answer(SUCCESS)) == soak.DONE


def test_the_end_is_read_from_the_history() -> None:
    error = {"exception_type": "ValueError", "exception_message": "words"}
    status: dict[str, Any] = {"status_str": "error", "messages": [["execution_error", error]]}
    assert _answer({"status": status, "outputs": {}}) == Answer(ERROR, "ValueError", "words")
    status["messages"] = [["execution_interrupted", {}]]
    assert _answer({"status": status, "outputs": {}}) == Answer(INTERRUPTED)
    done = {"status": {"status_str": "success", "messages": []}, "outputs": {"1": {}}}
    assert _answer(done) == Answer(SUCCESS, outputs={"1": {}})


def sound_soak() -> soak.Found:
    found = soak.Found(Counter({soak.DONE: 8, soak.REFUSED: 1, soak.STOPPED: 1}))
    found.memory = [500, 900, 990, *[1000, 1005, 1002, 1001, 1004, 1003, 1003]]
    found.descriptors, found.same = [20] * 10, [True] * 8
    return found


def test_the_soak_is_judged_by_every_line() -> None:
    rows, is_right = soak.judged(sound_soak(), 10)
    assert is_right and {row[-1] for row in rows} == {"yes"}
    for change, line in (
        (lambda found: found.counts.update({soak.FAILED: 1}), "failed"),
        (lambda found: found.counts.update({soak.DONE: -1}), "prompts ended"),
        (lambda found: found.same.append(False), "references as at the start"),
        (lambda found: found.same.clear(), "references as at the start"),
        (lambda found: found.memory.extend([1100] * 6), "memory growth after warm-up"),
        (lambda found: found.memory.clear(), "memory growth after warm-up"),
        (lambda found: found.descriptors.append(21), "descriptors more after warm-up"),
    ):
        found = sound_soak()
        change(found)
        rows, is_right = soak.judged(found, 10)
        assert not is_right and line in {row[0] for row in rows if row[-1] == "NO"}


def test_previews_are_compared_in_pairs_by_seconds():
    runs = {
        "none": [previews.Taken(2.0, 1.0), previews.Taken(9.0, 2.0)],
        "latent2rgb": [previews.Taken(2.4, 1.02), previews.Taken(9.6, 2.08)],
    }
    first, second = previews.rows(runs)
    assert first == ("none", "2", "5.50", "", "1.50", "")
    assert second == ("latent2rgb", "2", "6.00", "+13.3 ± 6.7 %", "1.55", "+3.0 ± 1.0 %")
    graphs_made = {str(previews.graph_of(seed)) for seed in range(4)}
    assert len(graphs_made) == 4, "ComfyUI runs no graph a second time"
