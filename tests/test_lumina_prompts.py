"""Prompts of Lumina-DiMOO: strings and token layouts against the original's, tokenizers, and bad input."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_sets import load
from shortcut_pack.shortcut.models.lumina_dimoo import prompts
from shortcut_pack.shortcut.models.lumina_dimoo import transformer as lumina
from shortcut_pack.shortcut.models.lumina_dimoo.prompts import (
    TASKS,
    conditions,
    load_tokenizer,
    prompt_string,
)
from torch import Tensor

REAL = lumina.Config(
    width=4096,
    depth=32,
    num_heads=32,
    num_kv_heads=32,
    mlp_width=12288,
    num_text_ids=126356,
    num_codes=8192,
    rope_theta=5e5,
    norm_eps=1e-5,
)
GOLDEN = load("lumina_prompts")
STRINGS = GOLDEN.info["prompt_strings"]
# The original's name -> our task and the text.
SAID = "Make it blue."
SAME_TASK = {
    "t2i": ("text_to_image", "A red cat."),
    "i2i:canny_pred": ("other", SAID),  # the original's spelling misses its prompt for maps
    "i2i:other": ("other", SAID),
    "i2i:canny_dense": ("predict_canny", SAID),
    "i2i:canny_control": ("control", SAID),
    "i2i:subject_driven": ("subject", SAID),
    "i2i:edit_add": ("edit", SAID),
    "i2i:ref_transfer": ("style", SAID),
    "i2i:image_ref_transfer": ("style", SAID),
    "i2i:multi_view_left": ("view", "left"),
}
NOT_OFFERED = {"i2i:dense_canny", "mmu", "templates"}  # a map of nothing; questions about pictures


class Bytes:
    """The tokenizer that the set was recorded with: a tag is a token, and so is any other byte."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        tags, ids = GOLDEN.info["stub_tokenizer"]["tags"], []
        while text:
            tag = next((tag for tag in tags if text.startswith(tag)), None)
            ids += [tags[tag]] if tag else [1000 + byte for byte in text[0].encode()]
            text = text[len(tag or text[0]) :]
        return {"input_ids": ids}


def test_every_recorded_string_is_a_task_of_ours_or_not_offered():
    assert set(STRINGS) == set(SAME_TASK) | NOT_OFFERED


@pytest.mark.parametrize("name", SAME_TASK)
def test_strings_equal_the_original(name):
    task, text = SAME_TASK[name]
    assert prompt_string(task, text) == STRINGS[name]["input_prompt"]
    assert prompt_string(task, negative=True) == STRINGS[name]["uncon_prompt"]


def test_system_prompts_are_those_of_the_original():
    theirs = set(STRINGS["templates"].values()) - {STRINGS["templates"]["text_understanding"]}
    ours = {task.system for task in TASKS.values()}
    assert ours - theirs == {"Generate an image according to the prompt and image."}
    assert theirs <= ours


def recorded_sources(case: str) -> list[Tensor]:
    """Codes of the source images (1, Y, X), read off the recorded prompt."""
    if f"{case}/uncon_text" not in GOLDEN:
        return []
    ids, sources = GOLDEN[f"{case}/uncon_text"][0].long(), []
    starts, ends = ((ids == REAL.special_id(name)).nonzero()[:, 0] for name in ("boi", "eoi"))
    for start, end in zip(starts, ends, strict=True):
        rows = ids[start + 1 : end]
        num_rows = int((rows == REAL.special_id("newline")).sum())
        codes_YX = rows.unflatten(0, (num_rows, -1))[:, :-1] - REAL.num_text_ids
        assert codes_YX.min() >= 0
        sources.append(codes_YX.unsqueeze(0))
    return sources


CASES = {
    "t2i": ("text_to_image", "A red cat."),
    "inpaint": ("text_to_image", "A red cat."),
    "outpaint": ("text_to_image", "A red cat."),
    "edit": ("edit", "Make it blue."),
    "ref_transfer": ("style", "x"),
}
RECORDED_CASES = {case["name"]: case for case in GOLDEN.info["args"]["cases"]}


@pytest.mark.parametrize("case", CASES)
def test_token_layout_equals_the_original(case):
    task, text = CASES[case]
    scalars = RECORDED_CASES[case]["scalars"]
    branches = conditions(Bytes(), REAL, task, text, sources=recorded_sources(case))
    others = [n for n in ("uncon_ids", "uncon_text", "uncon_image") if f"{case}/{n}" in GOLDEN]
    assert len(branches) == 1 + len(others)
    for branch_BP, name in zip(branches[1:], others, strict=True):
        assert torch.equal(branch_BP, GOLDEN[f"{case}/{name}"].long())
    assert branches[0].shape == (1, scalars["code_start"] - 2)
    whole_S = GOLDEN[f"{case}/prompt"][0].long()
    columns = scalars["newline_every"]
    model = lumina.LuminaDiMOO(REAL, device="meta").on_grid(scalars["seq_len"] // columns, columns)
    tokens_L = whole_S[scalars["code_start"] : -2].unflatten(0, (model.rows, -1))[:, :-1].flatten()
    target_BS = model.target_tokens(
        (tokens_L - REAL.num_text_ids).unsqueeze(0),
        (tokens_L == REAL.special_id("mask")).unsqueeze(0),
    )
    assert torch.equal(torch.cat([branches[0], target_BS], 1)[0], whole_S)


def test_control_a_wrong_layout_is_told_apart():
    (codes_BYX,) = recorded_sources("edit")
    expected_BP = GOLDEN["edit/uncon_text"].long()
    for wrong in (codes_BYX.mT, codes_BYX.flip(1), codes_BYX + 1):
        assert not torch.equal(
            conditions(Bytes(), REAL, "edit", "Make it blue.", sources=[wrong])[1], expected_BP
        )
    first, second = recorded_sources("ref_transfer")
    swapped = conditions(Bytes(), REAL, "style", sources=[second, first])[1]
    assert not torch.equal(swapped, GOLDEN["ref_transfer/uncon_text"].long())


def test_a_negative_prompt_takes_the_place_of_no_text():
    cond, negative = conditions(Bytes(), REAL, "text_to_image", "a cat", negative="blurry")
    assert cond.shape[1] == negative.shape[1] - 1
    assert torch.equal(negative, conditions(Bytes(), REAL, "text_to_image", "blurry")[0])
    codes_BYX = torch.zeros(1, 2, 3, dtype=torch.long)
    branches = conditions(Bytes(), REAL, "edit", "a", negative="b", sources=[codes_BYX])
    assert [len(b[0]) - len(branches[2][0]) for b in branches] == [10, 10, 0]
    assert prompt_string("style", "b", negative=True).endswith("<user>b</user>")


@pytest.mark.parametrize("text", ["", " ", "\n\t "])
def test_an_empty_prompt_is_that_without_a_text(text):
    cond, negative = conditions(Bytes(), REAL, "text_to_image", text)
    assert torch.equal(cond, negative)
    with pytest.raises(ValueError, match=r"'view' says .*\{text\} view.* needs a text"):
        prompt_string("view", text)


def test_braces_in_a_text_stay_as_they_are():
    assert "<user>{text} {0} %s</user>" in prompt_string("edit", "{text} {0} %s")


def test_sources_of_a_batch():
    one, three = torch.zeros(1, 2, 3, dtype=torch.long), torch.arange(3).view(3, 1, 1)
    branches = conditions(Bytes(), REAL, "style", sources=[one, three], num_images=3)
    assert {len(b) for b in branches} == {3}
    assert (branches[0] != branches[0][:1]).sum() == 2
    assert torch.equal(branches[2][0], branches[2][1])


def test_bad_requests():
    with pytest.raises(ValueError, match=r"task must be one of text_to_image, .*, got 'paint'"):
        conditions(Bytes(), REAL, "paint", "x")
    with pytest.raises(ValueError, match=r"'edit' takes 1 source images, got 0. Give them"):
        conditions(Bytes(), REAL, "edit", "x")
    codes_BYX = torch.zeros(1, 2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"takes 0 source images, got 1. Choose another task"):
        conditions(Bytes(), REAL, "text_to_image", "x", sources=[codes_BYX])


def test_half_of_a_character():
    with pytest.raises(ValueError, match=r"the negative prompt has '\\ud83e' at place 2, which is"):
        conditions(Bytes(), REAL, "text_to_image", "a \U0001f98a", negative="a \ud83e")


def test_a_prompt_that_is_too_long():
    fits = (
        prompts.MAX_TEXT_TOKENS
        - len(prompts.prompt_tokens(Bytes(), REAL, "text_to_image", "a"))
        + 1
    )
    assert conditions(Bytes(), REAL, "text_to_image", "a" * fits)[0].shape == (1, 1024)
    with pytest.raises(ValueError, match=r"the prompt has 1028 tokens .* Shorten it by 4 tokens"):
        conditions(Bytes(), REAL, "text_to_image", "a" * (fits + 4))
    with pytest.raises(ValueError, match="the negative prompt has 1025 tokens"):
        conditions(Bytes(), REAL, "text_to_image", "a", negative="a" * (fits + 1))


# --- tokenizers ---

SYSTEM = TASKS["text_to_image"].system
# Of tokens whose names in the published files we do not know.
NAMELESS = {"<|reserved_token_0|>": "newline", "<Image>": "boi", "</Image>": "eoi"}


def save_tokenizer(folder: Path, words: dict[str, int], tags: dict[str, int]) -> Path:
    """A tokenizer of whole words, as transformers writes it."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, **words, **tags}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(tag, normalized=False) for tag in tags])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def real_words() -> dict[str, int]:
    ids = GOLDEN.info["uncond_prompt_real_ids"][1:10]
    return dict(zip(SYSTEM.replace(".", " .").split(), ids, strict=True))


def tags_of(config: lumina.Config) -> dict[str, int]:
    """The special tokens of a tokenizer of the model."""
    names = prompts.TAGS | prompts.MARKS | NAMELESS
    return {token: config.special_id(name) for token, name in names.items()}


def test_the_published_unconditional_prompt(tmp_path):
    folder = save_tokenizer(tmp_path, real_words(), tags_of(REAL))
    tokenizer = load_tokenizer(folder, REAL)
    _, unconditional = conditions(tokenizer, REAL, "text_to_image", "an image")
    assert unconditional[0].tolist() == GOLDEN.info["uncond_prompt_real_ids"]


def test_a_tokenizer_of_another_model(tmp_path):
    small = replace(REAL, num_text_ids=400)
    folder = save_tokenizer(tmp_path / "small", {"a": 1}, tags_of(small))
    assert load_tokenizer(folder, small) is not None
    with pytest.raises(
        ValueError, match=r"small: its tokenizer makes \[376\] of <system>, .*126332"
    ):
        load_tokenizer(folder, REAL)
    other_words = {word: i + 1 for i, word in enumerate(real_words())}
    folder = save_tokenizer(tmp_path / "other", other_words, tags_of(REAL))
    with pytest.raises(ValueError, match=r"makes \[1, 2, .*expected \[36289, .*another model"):
        load_tokenizer(folder, REAL)
    folder = save_tokenizer(tmp_path / "plain", real_words(), {})
    with pytest.raises(ValueError, match=r"of <system>, expected \[126332\]. It is of another"):
        load_tokenizer(folder, REAL)


@pytest.mark.parametrize("token", [*prompts.TAGS, *prompts.MARKS])
def test_a_special_token_that_is_moved(tmp_path, token):
    tags = tags_of(REAL)
    expected, tags[token] = tags[token], 126345
    folder = save_tokenizer(tmp_path, real_words(), tags)
    with pytest.raises(ValueError, match=rf"126345\b.*, expected \[?{expected}\b") as error:
        load_tokenizer(folder, REAL)
    assert token in str(error.value)


@pytest.mark.parametrize("token", [*prompts.MARKS, *NAMELESS])
def test_at_the_id_of_a_mark_is_a_special_token_of_any_name(tmp_path, token):
    tags = tags_of(REAL)
    index = tags.pop(token)
    load_tokenizer(save_tokenizer(tmp_path / "named", real_words(), tags | {"<x>": index}), REAL)
    missing = save_tokenizer(tmp_path / "missing", real_words(), tags)
    with pytest.raises(ValueError, match=rf"has no token at {index}, expected a special token"):
        load_tokenizer(missing, REAL)
    word = save_tokenizer(tmp_path / "word", real_words() | {"fox": index}, tags)
    with pytest.raises(ValueError, match=rf"has the word 'fox' at {index}, .*It is of another"):
        load_tokenizer(word, REAL)


def test_words_of_a_small_model_are_not_compared(tmp_path):
    small = replace(REAL, num_text_ids=400)
    for words in ({"a": 1, "fox": 2}, {"a": 2, "fox": 1}):
        load_tokenizer(save_tokenizer(tmp_path, words, tags_of(small)), small)


def test_words_that_a_model_never_saw(tmp_path):
    small = replace(REAL, num_text_ids=400)
    folder = save_tokenizer(tmp_path, {"a": 1, "fox": 2, "pink": 3}, tags_of(small))
    assert prompts.unknown_words(load_tokenizer(folder, small), "a zebra") == (), "nobody can tell"
    file = folder / "tokenizer_config.json"
    for listed, found in (("a fox", ("pink", "zebra")), (7, ())):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"learned_words": listed}))
        tokenizer = load_tokenizer(folder, small)
        assert prompts.unknown_words(tokenizer, "A pink FOX, a zebra. Pink!") == found
        assert prompts.unknown_words(tokenizer, "<uncondition>") == ()


def test_a_missing_or_damaged_tokenizer(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer.json. Put the model's token"):
        load_tokenizer(tmp_path, REAL)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer.json: it is not JSON"):
        load_tokenizer(tmp_path, REAL)


def test_no_code_of_a_tokenizer_is_run(tmp_path):
    small = replace(REAL, num_text_ids=400)
    folder = save_tokenizer(tmp_path, {"a": 1}, tags_of(small))
    config: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("import os\nos.mkdir('ran')\nclass Evil: pass\n")
    here = os.listdir()
    load_tokenizer(folder, small)
    assert os.listdir() == here
    assert "evil" not in sys.modules
