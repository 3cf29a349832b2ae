"""Tokenizer files that are damaged or hostile: refused by name, before the library or a text can run away."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut import shipped
from shortcut_pack.shortcut.models.lumina_dimoo import prompts
from shortcut_pack.shortcut.models.lumina_dimoo.prompts import load_tokenizer, prompt_tokens
from shortcut_pack.shortcut.models.tokenizer_files import check_pattern

FOLDER = Path(shipped.__file__).parents[1] / "shipped" / "scenes-lumina"
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@pytest.fixture(scope="module")
def config() -> Any:
    return checkpoints.load(FOLDER / "scenes-lumina.safetensors").config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        shutil.copy(FOLDER / name, tmp_path)
    return tmp_path


def changed(folder: Path, **entries: Any) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def replaced(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*parts: dict[str, Any], name: str = "normalizers") -> dict[str, Any]:
    return {"type": "Sequence", name: list(parts)}


DOUBLE = replaced({"String": "a"}, "aa")
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"normalizer": sequence(*[DOUBLE] * 34)}, "34 steps in a row"),
        ({"normalizer": sequence(*[DOUBLE] * 9)}, "more than 64 times as long"),
        ({"normalizer": sequence(sequence(*[DOUBLE] * 9), DOUBLE)}, "more than 64 times"),
        ({"normalizer": replaced({"String": "a"}, "a" * 100)}, "more than 64 times"),
        ({"normalizer": replaced({"Regex": "x*"}, "a" * 100)}, "more than 64 times"),
        ({"normalizer": {"type": "Prepend", "prepend": "a" * 100}}, "more than 64 times"),
        ({"pre_tokenizer": sequence(*[BYTES] * 9, name="pretokenizers")}, "more than 64 times"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}}, "'Precompiled'"),
        ({"normalizer": replaced({"Regex": "(a+)+$"}, "b")}, "may take any time"),
        ({"normalizer": 5}, "cannot be used"),
        ({"pre_tokenizer": {"type": ["Split"]}}, "cannot be used"),
        ({"model": None}, "holds a tokenizer that cannot be read"),
    ],
)
def test_a_tokenizer_that_may_run_away_is_refused(
    entries: dict[str, Any], match: str, folder: Path, config: Any
) -> None:
    changed(folder, **entries)
    with pytest.raises(ValueError, match=match) as caught:
        load_tokenizer(folder, config)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"{", b"[" * 100_000, b"\xff\xfe", b'{"a": 1' + b"0" * 400 + b"}"]
)
@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_json_are_named(
    name: str, content: bytes, folder: Path, config: Any
) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        load_tokenizer(folder, config)


def test_a_word_with_an_id_that_the_model_has_not_is_refused(folder: Path, config: Any) -> None:
    described = json.loads((folder / "tokenizer.json").read_text())
    described["model"]["vocab"]["tree"] = 10**6
    changed(folder, **described)
    tokenizer = load_tokenizer(folder, config)
    with pytest.raises(
        ValueError, match="it makes the id 1000000, but the model has 640"
    ) as caught:
        prompt_tokens(tokenizer, config, "text_to_image", "a tree")
    assert str(folder) in str(caught.value)


def test_a_panic_of_the_library_is_an_error_that_names_the_folder(
    folder: Path, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "check_tokenizer_files", lambda folder: None)
    changed(folder, normalizer={"type": "Precompiled", "precompiled_charsmap": ""})
    with pytest.raises(ValueError, match="holds a tokenizer that cannot be read") as caught:
        load_tokenizer(folder, config)
    assert not isinstance(caught.value.__cause__, Exception), "it is a panic"
    assert str(folder) in str(caught.value)


def test_a_panic_at_a_text_is_an_error_that_names_the_folder(config: Any) -> None:
    class PanicException(BaseException):
        pass

    class Broken:
        name_or_path = "FOLDER"

        def __call__(self, text: str, **_: Any) -> Any:
            raise PanicException("index out of bounds")

    with pytest.raises(ValueError, match=r"FOLDER fails at a text .*index out of bounds"):
        prompt_tokens(Broken(), config, "text_to_image", "a tree")


def test_a_text_of_any_length_is_refused_before_it_is_tokenized(config: Any) -> None:
    with pytest.raises(ValueError, match="the prompt has 20000 characters, expected at most"):
        prompt_tokens(None, config, "text_to_image", "a" * 20_000)


# The patterns that published tokenizers split by.
HARMLESS = (
    r"\w+|[,.:]",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|\s+(?!\S)|\s+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+",
)
ENDLESS = (
    r"(a|a|a)*(a|a|a)*(a|a|a)*(a|a|a)*x$",
    r"(a+)+$",
    r"(?:a+)+b",
    r"(x+x+)+y",
    "a*a*a*a*x",
    "a?" * 30 + "a" * 30,
    "(a|a)" * 30 + "x",
    "(a+|b)" * 3 + "x",
    "a{1,1000}" * 3 + "x",
    "a" * 2000,
)


def test_patterns_of_published_tokenizers_are_taken() -> None:
    for pattern in HARMLESS:
        check_pattern(pattern)


@pytest.mark.parametrize("pattern", ENDLESS)
def test_patterns_that_may_take_any_time_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="may take any time"):
        check_pattern(pattern)
