"""Teacher runs on disk: what is read is what was recorded, whatever happened on the way."""

from __future__ import annotations

import errno
import json
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import builders
import pytest
import torch
from shortcut_pack.shortcut import shipped, weights
from shortcut_pack.shortcut.models.lumina_dimoo.prompts import load_tokenizer
from shortcut_pack.shortcut.schedule import Settings
from shortcut_pack.shortcut.train import dataset, recording
from shortcut_pack.shortcut.train.dataset import Dataset, Recording, shard_path
from shortcut_pack.shortcut.train.fit import Recipe
from shortcut_pack.shortcut.train.head import Teaching, initialised, train_head
from shortcut_pack.shortcut.train.loss import Objective
from shortcut_pack.shortcut.train.record import Trajectories
from shortcut_pack.shortcut.train.recording import make
from shortcut_pack.shortcut.train.teacher import RUNS, Teacher, teacher_of

MODEL = builders.model()
WANTED = Recording(
    model=MODEL.name,
    model_fingerprint=MODEL.fingerprint,
    grid=(4, 4),
    runs=(Settings(num_steps=3), Settings(num_steps=4, choice_temperature=float("inf"))),
    seed=5,
    num_images=12,
    images_per_run=4,
    arithmetic="float32",
)
FULL = OSError(errno.ENOSPC, "No space left on device")


@cache
def teacher() -> Teacher:
    return teacher_of(MODEL, weights.build(MODEL))


@cache
def text_teacher() -> Teacher:
    model = builders.text_model()
    tokenizer = load_tokenizer(shipped.TEXT_FOLDER, model.config)
    prompts = ["a red house", "trees", "snow at night by the sea"]
    settings = replace(weights.settings(model), num_steps=4)
    options = {"tokenizer": tokenizer, "prompts": prompts, "settings": settings}
    return teacher_of(model, weights.build(model), grid=(2, 3), **options)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A finished dataset."""
    make(tmp_path / "whole", teacher(), WANTED)
    return tmp_path / "whole"


def opened(folder: Path) -> Dataset:
    return Dataset.open(folder, MODEL, WANTED.grid)


def assert_same_run(found: Trajectories, expected: Trajectories) -> None:
    assert found.steps == expected.steps
    for name in ("conditions", "features", "revealed", "masked_index", "codes_BL"):
        pairs = zip(flat(getattr(found, name)), flat(getattr(expected, name)), strict=True)
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs), name


def flat(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in flat(item)]
    return [value.codes_BK, value.index_BK]


def test_what_is_read_is_what_training_without_a_dataset_would_learn_from(whole: Path) -> None:
    data = opened(whole)
    lengths = set()
    for number in range(3):
        live = teacher().run(WANTED.runs, 4, (WANTED.seed, RUNS, number))
        assert_same_run(data.run(number), live)
        lengths.add(len(live.steps))
        assert live.features[0][0].dtype == torch.float16
    assert lengths == {3, 4}
    assert_same_run(data.run(4), data.run(1))  # after the last comes the first


def test_training_from_disk_equals_training_meanwhile(whole: Path) -> None:
    recipe = Recipe(iterations=6, seed=WANTED.seed, warmup=1)
    teaching = Teaching(
        runs=WANTED.runs,
        images_per_run=4,
        runs_kept=2,
        iterations_per_run=3,
        windows_per_batch=2,
        images_per_window=4,
        max_chain=2,
    )

    def trained(source: Any) -> dict[str, torch.Tensor]:
        head = initialised(builders.HEAD_CONFIG, 0)
        return train_head(
            teacher(), head, recipe, teaching, Objective(), source=source
        ).state_dict()

    meanwhile, from_disk = trained(None), trained(opened(whole).run)
    assert all(torch.equal(tensor, from_disk[name]) for name, tensor in meanwhile.items())
    untrained = initialised(builders.HEAD_CONFIG, 0).state_dict()
    assert not all(torch.equal(tensor, from_disk[name]) for name, tensor in untrained.items())


def test_a_process_reads_its_rows_alone(whole: Path) -> None:
    part = opened(whole).run(0, slice(1, 3))
    live = teacher().run(WANTED.runs, 4, (WANTED.seed, RUNS, 0), slice(1, 3))
    assert part.num_images == 2
    torch.testing.assert_close(part.features[2][1], live.features[2][1], rtol=1e-2, atol=1e-2)
    assert torch.equal(part.codes_BL, live.codes_BL)


def test_prompts_of_several_lengths(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    runs = (text_teacher().settings,)
    wanted = replace(WANTED, runs=runs, grid=(2, 3), num_images=8, images_per_run=2)
    found = make(tmp_path, text_teacher(), wanted)
    data = Dataset(tmp_path, wanted)
    for number in range(4):
        assert_same_run(data.run(number), text_teacher().run(runs, 2, (5, RUNS, number)))
    assert len({data.run(number).features[0][0].shape[1] for number in range(4)}) > 1
    assert found.num_bytes < size_of(tmp_path) < 1.6 * found.num_bytes  # tiny shards: headers show


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_a_run_without_guidance_keeps_one_branch(tmp_path: Path) -> None:
    wanted = replace(WANTED, runs=(Settings(num_steps=3, guidance=()),))
    make(tmp_path, teacher(), wanted)
    run = Dataset(tmp_path, wanted).run(0)
    assert len(run.conditions) == len(run.features[0]) == 1


class Killed(Exception):
    """The process ended here."""


def kill(*_: Any) -> None:
    raise Killed


def half_written(error: BaseException, at: int) -> Callable[..., None]:
    """A writer that ends by `error` in the middle of file number `at`."""
    calls, write = [], dataset.write_safetensors

    def call(path: Path, *arguments: Any) -> None:
        calls.append(path)
        write(path, *arguments)
        if len(calls) == at + 1:
            path.write_bytes(path.read_bytes()[:1000])
            raise error

    return call


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("when", ["between", "inside"])
def test_a_killed_recording_goes_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, at: int
) -> None:
    folder = tmp_path / "killed"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if when == "inside":
            patch.setattr(dataset, "write_safetensors", half_written(Killed(), at))
        make(folder, teacher(), WANTED, on_run=lambda done, _: done > at and kill())
    # A process that is killed from outside cannot clean up.
    (folder / ".shard-00002.safetensors.1.partial").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"is not finished: \d of 3 shards are missing"):
        opened(folder)
    before = files(folder)
    found = make(folder, teacher(), WANTED)
    assert found.missing == [0, 1, 2][at + (when == "between") :]
    assert files(folder) == files(whole)
    assert all(files(folder)[name] == data for name, data in before.items() if name[0] != ".")


def test_a_full_disk_leaves_whole_shards_and_the_same_call_goes_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "full"
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "write_safetensors", half_written(FULL, 1))
        with pytest.raises(OSError, match=r"disk is full: .*shard-00001.* needs .* are free"):
            make(folder, teacher(), WANTED)
    assert sorted(files(folder)) == ["index.json", "shard-00000.safetensors"]
    make(folder, teacher(), WANTED)
    assert files(folder) == files(whole)


def test_more_images_are_added(whole: Path) -> None:
    before = files(whole)
    assert make(whole, teacher(), replace(WANTED, num_images=16)).missing == [3]
    assert opened(whole).recording.num_images == 16
    del before["index.json"]
    assert before.items() <= files(whole).items()


def test_too_large_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, many = tmp_path / "large", replace(WANTED, num_images=40_000, images_per_run=4000)
    with pytest.raises(
        ValueError, match=r"takes 0\.327 GB, and the limit is 0\.1 GB\. 12000 images"
    ):
        make(folder, teacher(), many, limit=0.1e9)
    with pytest.raises(ValueError, match=r"takes .* and the limit is 0 GB\. 0 images fit"):
        make(folder, teacher(), WANTED, limit=0)
    usage = namedtuple("usage", "free")(100)
    monkeypatch.setattr(recording.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"takes .* and the disk of .*large has 1e-07 GB free"):
        make(folder, teacher(), WANTED)
    assert not folder.exists()


def test_the_estimate_is_what_it_takes(tmp_path: Path) -> None:
    wanted = replace(WANTED, num_images=64, images_per_run=64)
    estimate = make(tmp_path, teacher(), wanted).num_bytes
    assert estimate < size_of(tmp_path) < 1.02 * estimate


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("at", [-1, -5000])
def test_a_changed_bit_is_found_and_recorded_again(whole: Path, at: int) -> None:
    before, path = files(whole), shard_path(whole, 1)
    damage(path, at)
    data = opened(whole)
    data.run(0)
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors is damaged: its checksum"):
        data.run(1)
    path.unlink()
    assert make(whole, teacher(), WANTED).missing == [1]
    assert files(whole) == before


def test_a_shard_that_was_cut_off_is_recorded_again(
    whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, path = files(whole), shard_path(whole, 2)
    path.write_bytes(path.read_bytes()[:-100])
    data = opened(whole)
    for use in (data.described, lambda: data.run(2)):
        with pytest.raises(
            ValueError, match=r"shard-00002\.safetensors is damaged.* Delete it"
        ) as e:
            use()
        assert "ownload" not in str(e.value)
    assert make(whole, teacher(), WANTED).missing == [2]
    assert "shard-00002.safetensors is damaged and will be made again" in caplog.text
    assert files(whole) == before


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty. Delete it. The same"), (None, "is missing. The same")]
)
def test_a_shard_that_is_empty_or_gone_while_it_is_needed(
    whole: Path, content: bytes | None, message: str
) -> None:
    data, path = opened(whole), shard_path(whole, 1)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    for use in (data.described, lambda: data.run(1)):
        with pytest.raises(ValueError, match=message) as caught:
            use()
        assert "ownload" not in str(caught.value)


def test_recordings_are_told_apart(whole: Path, tmp_path: Path) -> None:
    make(tmp_path / "same", teacher(), WANTED)
    assert opened(tmp_path / "same").described() == opened(whole).described()
    large = builders.model()
    large.tensors["last_layer.3.weight"].mul_(1.5)  # of the same name and fingerprint, for once
    make(tmp_path / "other", teacher_of(large, weights.build(large)), WANTED)
    found = opened(tmp_path / "other").described()
    assert found.startswith("12 images recorded") and found != opened(whole).described()


def test_a_dataset_of_another_model_or_grid(whole: Path) -> None:
    other = replace(builders.model(seed=9), path=Path("other.safetensors"))
    with pytest.raises(ValueError, match=rf"of {MODEL.name} \({MODEL.fingerprint}\), not of other"):
        Dataset.open(whole, other, (4, 4))
    with pytest.raises(ValueError, match="recorded on a grid of 4 x 4 codes, expected 4 x 5"):
        Dataset.open(whole, MODEL, (4, 5))


def test_a_base_that_changed_since_it_was_recorded(whole: Path) -> None:
    changed = builders.model(seed=9)
    with pytest.raises(ValueError, match=f"weights have changed since .*{changed.fingerprint} now"):
        Dataset.open(whole, changed, (4, 4))
    fingerprint = changed.fingerprint
    with pytest.raises(ValueError, match=f"another model fingerprint: .* now {fingerprint}"):
        make(whole, teacher(), replace(WANTED, model_fingerprint=fingerprint))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 6}, "another seed: 5, now 6"),
        ({"runs": (Settings(num_steps=3),)}, "other steps or settings"),
        ({"images_per_run": 6}, "another images per run: 4, now 6"),
        ({"num_images": 13}, "13 images do not fill whole runs of 4. Record 12 or 16"),
        ({"num_images": 0}, "at least one image"),
    ],
)
def test_a_folder_goes_on_only_as_it_was_begun(
    whole: Path, other: dict[str, Any], message: str
) -> None:
    before = files(whole)
    with pytest.raises(ValueError, match=message):
        make(whole, teacher(), replace(WANTED, **other))
    assert files(whole) == before


def test_shards_of_another_recording_are_not_taken_for_ones_of_this(whole: Path) -> None:
    (whole / "index.json").unlink()
    with pytest.raises(ValueError, match=r"shard-00000.* is of another recording"):
        make(whole, teacher(), replace(WANTED, seed=6))
    assert make(whole, teacher(), WANTED).missing == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"holds no index\.json"),
        ("{", r"index\.json: "),
        ("[]", "not the index of a dataset"),
        ('{"format": "other"}', "not the index of a dataset"),
        ({"version": 2}, "version 2, expected 1"),
        ({"runs": [{"steps": 1}]}, "damaged"),
        ({"seed": None, "images_per_run": None}, "damaged"),
    ],
)
def test_an_index_that_cannot_be_used(whole: Path, text: Any, message: str) -> None:
    path = whole / "index.json"
    if isinstance(text, dict):
        text = json.dumps(json.loads(path.read_text()) | text)
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        opened(whole)


def test_features_that_float16_cannot_hold_are_not_written(tmp_path: Path) -> None:
    large = builders.model()
    large.tensors["last_layer.3.weight"].mul_(1e6)
    with pytest.raises(FloatingPointError, match="too large for float16"):
        make(tmp_path, teacher_of(large, weights.build(large)), WANTED)
    assert not list(tmp_path.glob("*shard*"))
