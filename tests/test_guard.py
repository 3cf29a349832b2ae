"""Hostile and odd files: each ends in an error that names it, in bounded time and memory; none is called damaged for
what its surroundings do.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import pytest
import torch
from builders import assert_same
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut import containers, guard, memory
from shortcut_pack.shortcut.files import read
from shortcut_pack.shortcut.generate import masked_at_start
from shortcut_pack.shortcut.grid import grid_of
from shortcut_pack.shortcut.guard import guarded, naming, parse_json, read_yaml
from shortcut_pack.shortcut.models.layout import check_sizes
from shortcut_pack.shortcut.schedule import Settings
from shortcut_pack.shortcut.settings import chosen_settings
from shortcut_pack.shortcut.train.fit import Recipe
from shortcut_pack.shortcut.train.head import RolloutConfig
from shortcut_pack.shortcut.train.state_file import StateFile


@contextmanager
def within(seconds: float) -> Iterator[None]:
    begun = time.process_time()
    yield
    assert time.process_time() - begun < seconds


# What passes, and what becomes an error that names the file.


class PanicException(BaseException):
    """As the one of pyo3."""


class Interrupt(BaseException):
    """As ComfyUI's."""


@pytest.mark.parametrize(
    "error", [PanicException("x"), KeyError("x"), MemoryError(), RecursionError("x"), Exception()]
)
def test_whatever_a_library_raises_names_the_file(error: BaseException) -> None:
    expected = pytest.raises(ValueError, match=r"^FILE is odd .*\. Do this\.$")
    with expected, guarded("FILE", "is odd", "Do this."):
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, Interrupt])
def test_interrupts_pass(error: type[BaseException]) -> None:
    with pytest.raises(error), guarded("FILE", "is odd", ""), naming("FILE"):
        raise error


def test_a_refusal_of_the_system_keeps_its_kind_and_gets_the_name() -> None:
    with pytest.raises(PermissionError, match="FILE") as caught, guarded("FILE", "is odd", ""):
        raise OSError(errno.EACCES, "Permission denied")
    assert caught.value.errno == errno.EACCES


@pytest.mark.parametrize("error", [TypeError, AttributeError, KeyError, OverflowError])
def test_our_own_reading_names_the_file_too(error: type[Exception]) -> None:
    with pytest.raises(ValueError, match="FILE: it is damaged"), naming("FILE"):
        raise error("x")


# Surroundings that are not the file's fault.


def no_mmap(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENODEV, "No such device (os error 19)")


def test_safetensors_files_are_read_where_nothing_can_be_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = builders.write(tmp_path / "a.safetensors", builders.head())
    expected = checkpoints.load(path)
    monkeypatch.setattr(containers, "safe_open", no_mmap)
    assert_same(checkpoints.load(path), expected)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"a.safetensors is a damaged .* at \d+ to"):
        checkpoints.load(path)


def test_pytorch_files_are_read_where_nothing_can_be_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(filename: str, *_: Any, **__: Any) -> Any:
        raise RuntimeError(f"unable to mmap 5998715 bytes from file <{filename}>: No such device")

    path = builders.write(tmp_path / "a.pth", builders.head())
    monkeypatch.setattr(torch.UntypedStorage, "from_file", refused)
    assert_same(checkpoints.load(path, **builders.HEAD_SIZES), builders.head())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_names_that_are_not_utf_8(suffix: str, tmp_path: Path) -> None:
    path = builders.write(tmp_path / f"a{suffix}", builders.head())
    try:
        odd = path.rename(tmp_path / os.fsdecode(b"\xff" + suffix.encode()))
    except OSError:
        pytest.skip("this file system has no such names")
    assert_same(checkpoints.load(odd, **builders.HEAD_SIZES), builders.head())


def test_a_refused_access_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = builders.write(tmp_path / "a.safetensors", builders.head())

    def refused(*_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(PermissionError, match=r"a.safetensors"):
        checkpoints.load(path)


def test_pickles_are_refused_by_a_torch_that_could_run_their_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = builders.write(tmp_path / "a.pth", builders.head())
    ours = builders.write(tmp_path / "a.safetensors", builders.head())
    for version in ("2.5.1+cu124", "1.13.0"):
        monkeypatch.setattr(torch, "__version__", version)
        with pytest.raises(ValueError, match=r"a.pth .* torch .*CVE-2025-32434.*safetensors"):
            checkpoints.load(path)
        checkpoints.load(ours)
    monkeypatch.setattr(torch, "__version__", "2.10.0a0+git1")
    checkpoints.load(path, **builders.HEAD_SIZES)


# Bombs.


def zipped(path: Path, pickled: bytes, *, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", bytes(64))
    return path


def test_an_archive_that_unpacks_to_more_than_the_file(tmp_path: Path) -> None:
    bomb = zipped(tmp_path / "a.pth", bytes(2**24), compression=zipfile.ZIP_DEFLATED)
    with within(1), pytest.raises(ValueError, match=r"a.pth is a damaged .* compressed"):
        checkpoints.load(bomb)
    path = zipped(tmp_path / "b.pth", b"\x80\x02}.")
    with zipfile.ZipFile(path) as archive:
        first = archive.infolist()[0]
    content = path.read_bytes().replace(
        first.file_size.to_bytes(4, "little") * 2, (2**30).to_bytes(4, "little") * 2
    )
    path.write_bytes(content)
    with within(1), pytest.raises(ValueError, match=r"b.pth is a damaged .* larger than the file"):
        checkpoints.load(path)


def test_a_pickle_of_a_million_nested_lists(tmp_path: Path) -> None:
    nested = b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b"."
    path = zipped(tmp_path / "a.pth", nested)
    with within(1), pytest.raises(ValueError, match=r"a.pth is a damaged .* more than \d+ bytes"):
        checkpoints.load(path)


SHARED = b"]q\0" + b"".join(b"]q%c(h%ch%ce" % (i, i - 1, i - 1) for i in range(1, 60))
BOMBS = {
    # Called, hashed or shown it would have no end.
    "lists in lists": (b"}(" + SHARED + b"Rh\0u.", "uses a list or a dict more than once"),
    "tuples in tuples": (
        b"}(" + b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b"Nu.",
        "stands for more than",
    ),
    "texts": (
        b"](X" + (2**16).to_bytes(4, "little") + b"x" * 2**16 + b"q\1" + b"h\1" * 2000 + b"e.",
        "stands for more than",
    ),
    "a long text": (b"}(X\xff\xff\xff\xff" + b"x" * 9, "more than the file has bytes"),
    "a deep tuple": (b"}(N" + b"\x85" * 100_000 + b"Nu.", "nested more than"),
    "many bytes": (
        b"}(X\1\0\0\0xcbuiltins\nbytearray\n\x8a\6" + (2**46).to_bytes(6, "little") + b"\x85Ru.",
        "more than the file has bytes",
    ),
}


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("kind", BOMBS)
def test_a_pickle_that_stands_for_more_than_the_file(
    kind: str, is_zip: bool, tmp_path: Path
) -> None:
    content, match = BOMBS[kind]
    path = tmp_path / "a.pth"
    if is_zip:
        zipped(path, b"\x80\x02" + content)
    else:
        path.write_bytes(b"\x80\x02" + content)
    with within(1), pytest.raises(ValueError, match=rf"a.pth is a damaged .*{match}"):
        checkpoints.load(path)


def test_a_state_of_a_training_that_is_a_bomb(tmp_path: Path) -> None:
    for kind in ("tuples in tuples", "many bytes"):
        path = zipped(tmp_path / "n.ckpt", b"\x80\x02" + BOMBS[kind][0])
        with within(1), pytest.raises(ValueError, match=r"n\.ckpt is no checkpoint of a training"):
            StateFile(path, {}, True).read()


def test_what_pickles_of_trainings_share_is_read(tmp_path: Path) -> None:
    """Tied weights, and numbers of an optimizer that several of its groups have."""
    network = torch.nn.utils.skip_init(torch.nn.Linear, 3, 3)
    torch.nn.init.ones_(network.weight)
    shared = (0.9, 0.999)
    groups = [{"betas": shared, "params": [i]} for i in range(3)]
    state = {"model": {"a": network.weight, "b": network.weight}, "optimizer": groups}
    state["state_dict"] = network.state_dict()
    torch.save(state, tmp_path / "a.pth")
    torch.save(state, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    for name in ("a.pth", "b.pth"):
        assert torch.equal(read(tmp_path / name)[0]["model"]["b"], network.weight)


def pickled(value: Any) -> bytes:
    """The opcodes of a value, without those around it."""
    return pickle.dumps(value, 2)[2:-1]


def test_a_pickle_that_hides_methods_of_its_tensors_and_dicts(tmp_path: Path) -> None:
    tensor = (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\nctorch\nTensor\n(("
        + pickled("storage")
        + b"ctorch\nFloatStorage\n"
        + pickled("0")
        + pickled("cpu")
        + pickled(16)
        + b"tQ"
        + pickled(0)
        + pickled((4, 4))
        + pickled((4, 1))
        + b"\x89ccollections\nOrderedDict\n)Rt"
        + pickled({"is_floating_point": 5, "untyped_storage": 5})
        + b"tR"
    )
    keys = (b"tok_emb.weight", b"pos_emb", b"bias")
    entries = b"".join(pickled(key.decode()) + tensor for key in keys)
    for content in (
        b"\x80\x02}(" + entries + b"u.",
        b"\x80\x02ccollections\nOrderedDict\n)R("
        + entries
        + b"u"
        + pickled({"items": 5, "keys": 5})
        + b"b.",
    ):
        with pytest.raises(ValueError, match=r"a.pth: "):
            checkpoints.load(zipped(tmp_path / "a.pth", content))


def test_a_file_of_very_many_tensors() -> None:
    raw = dict.fromkeys(map(str, range(70_000)), torch.zeros(1))
    with within(1), pytest.raises(ValueError, match="FILE: it has 70000 entries, expected at most"):
        checkpoints.from_tensors(raw, path="FILE")


BOMB = "a0: &a0 [x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (BOMB, r"the alias \*a0"),
        ("[" * 60_000, "nested more than"),
        ("- " * 30_000, "nested more than"),
        ("x: " + "9" * 70_000, "more than 65536 bytes"),
        ("x: " + "9" * 60_000, "a.yaml is not usable YAML"),
        ("x: !!python/object/apply:os.system ['false']", "a.yaml is not usable YAML"),
    ],
)
def test_yaml_that_is_hostile(content: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(content)
    with within(1), pytest.raises(ValueError, match=rf"(?s)a.yaml.*{match}|a.yaml {match}|{match}"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[" * 50 + "]" * 50, "1" + "0" * 400, "-1e999", "9" * 5000, '{"a":']
)
def test_json_that_is_hostile(text: str) -> None:
    with within(1), pytest.raises(ValueError):
        parse_json(text)
    assert parse_json('{"a": [1.5, -18446744073709551615, Infinity]}')["a"][:2] == [1.5, 1 - 2**64]


def test_a_description_that_is_no_file_or_endless(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with within(1), pytest.raises(ValueError, match="is not a file"):
            guard.read_json(path)
    with pytest.raises(ValueError, match="more than 10 bytes"):
        (tmp_path / "a.json").write_text(json.dumps("x" * 20))
        guard.read_json(tmp_path / "a.json", 10)


# Numbers.

HUGE = 10**400


@pytest.mark.parametrize(
    "change",
    [
        {"num_steps": HUGE},
        {"num_steps": 30_000_000},
        {"num_steps": 2.5},
        {"temperature": HUGE},
        {"choice_temperature": HUGE},
        {"guidance": (HUGE,)},
        {"full_steps": HUGE},
        {"full_steps": tuple(range(100_000))},
    ],
)
def test_settings_have_upper_bounds(change: dict[str, Any]) -> None:
    with within(1), pytest.raises(ValueError):
        Settings(**change).check()


def test_the_share_of_full_steps_of_a_huge_number() -> None:
    with pytest.raises(ValueError, match="steps must be at most"):
        chosen_settings(builders.model(), num_guided=1, accelerator="head", steps=HUGE)


def test_numbers_of_a_training_have_upper_bounds() -> None:
    names = ("images_per_run", "runs_kept", "iterations_per_run", "windows_per_batch", "max_chain")
    for name in names:
        config = RolloutConfig(runs=(Settings(),), **{name: HUGE})
        with pytest.raises(ValueError, match=f"{name.replace('_', ' ')} must be at most"):
            config.check()


@pytest.mark.parametrize("name", ["iterations", "seed", "warmup"])
def test_numbers_of_a_recipe_have_upper_bounds(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at most"):
        replace(Recipe(iterations=10), **{name: HUGE}).check()


def test_a_run_has_upper_bounds() -> None:
    def draw(seed: int = 0, num_images: int = 1, num_tokens: int = 4) -> None:
        masked_at_start(seed, range(num_images), num_tokens, None, None, 1.0)

    draw()
    for wrong in ({"seed": 2**64}, {"num_images": 10**9}, {"num_tokens": 2**40}):
        with within(1), pytest.raises(ValueError, match="must be at most"):
            draw(**wrong)


def test_what_a_run_takes_is_compared_with_what_there_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory, "memory_of", lambda device: (10**9, 2 * 10**9))
    cpu = torch.device("cpu")
    memory.check_memory(1e8, cpu)
    assert not caplog.records
    memory.check_memory(1.5e9, cpu)
    assert "takes about 1.5 GB beside the weights, and cpu has 1.0 GB free" in caplog.text
    with pytest.raises(
        ValueError, match=r"about 2.5 GB .* cpu has 2.0 GB in all. Use --sequential"
    ):
        memory.check_memory(2.5e9, cpu)


def test_memory_of_this_machine() -> None:
    found = memory.memory_of(torch.device("cpu"))
    assert found is None or 0 < found[0] <= found[1]
    assert memory.memory_of(torch.device("meta")) is None


def test_sizes_have_upper_bounds() -> None:
    model = builders.model()
    for side in (2**40, HUGE):
        with pytest.raises(ValueError, match="must be at most"):
            grid_of(model, 16, width=side)
        for name in ("depth", "num_heads", "width", "num_codes", "grid"):
            with pytest.raises(ValueError, match=f"{name} must be at most"):
                check_sizes(replace(model.config, **{name: side}))


def test_a_file_that_states_a_huge_number_is_refused_by_name(tmp_path: Path) -> None:
    path = builders.write(tmp_path / "a.safetensors", builders.model())
    raw, metadata = checkpoints.read(path)
    for number in ("1" + "0" * 400, "1e400", "65536000"):
        config = json.loads(metadata["shortcut.config"]) | {"num_heads": "NUMBER"}
        text = json.dumps(config).replace('"NUMBER"', number)
        with pytest.raises(ValueError, match=r"a.safetensors: .*(number|num_heads)"):
            checkpoints.from_tensors(raw, metadata | {"shortcut.config": text}, path)
