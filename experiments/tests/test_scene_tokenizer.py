"""The tokenizer of the shipped text model: the published layout with a small vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import golden_sets
import pytest

from experiments import scene_tokenizer
from experiments.scenes.captions import caption
from experiments.scenes.prompts import prompts
from experiments.scenes.scene import compose_varied
from experiments.scenes.tokenizer import NUM_TEXT_IDS, SYSTEM_PROMPTS, UNKNOWN
from shortcut import shipped
from shortcut.models.lumina_dimoo import transformer as lumina
from shortcut.models.lumina_dimoo.prompts import TASKS, load_tokenizer, prompt_string

REAL_NUM_TEXT_IDS = 126356
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    pytest.importorskip("transformers")
    sizes = {"width": 8, "depth": 1, "num_heads": 1, "num_kv_heads": 1, "mlp_width": 8}
    more = {"num_codes": 512, "rope_theta": 1e4, "norm_eps": 1e-5}
    config = lumina.Config(**sizes, **more, num_text_ids=NUM_TEXT_IDS)
    return load_tokenizer(shipped.TEXT_FOLDER, config)


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


def test_the_shipped_files_are_what_the_code_makes(tmp_path: Path) -> None:
    scene_tokenizer.make(tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (shipped.TEXT_FOLDER / name).read_bytes(), name


def test_special_ids_stand_where_the_published_ones_do(tokenizer: Any) -> None:
    golden = golden_sets.load("lumina_prompts").info
    offset = REAL_NUM_TEXT_IDS - NUM_TEXT_IDS
    real = {f"<{name}>": i for name, i in golden["special_tokens"].items() if name != "code_offset"}
    real["<|mdm_mask|>"] = real.pop("<mask>")
    real |= golden["stub_tokenizer"]["tags"]
    for token, index in real.items():
        assert tokenizer.convert_tokens_to_ids(token) == index - offset, token
    assert len(tokenizer) == NUM_TEXT_IDS
    assert sorted(tokenizer.get_vocab().values()) == list(range(NUM_TEXT_IDS))


def test_the_unconditional_prompt_has_the_layout_of_the_published_one(tokenizer: Any) -> None:
    golden = golden_sets.load("lumina_prompts").info
    found = ids(tokenizer, golden["prompt_strings"]["t2i"]["uncon_prompt"])
    real = [i - REAL_NUM_TEXT_IDS for i in golden["uncond_prompt_real_ids"]]
    # One id for the nine of the system prompt; the tags around it are the same.
    assert [i - NUM_TEXT_IDS for i in (found[0], *found[2:])] == [real[0], *real[10:]]
    assert tokenizer.convert_ids_to_tokens(found[1]) in SYSTEM_PROMPTS


@pytest.mark.parametrize("task", TASKS)
def test_the_system_prompts_are_one_id_each_and_what_all_say_is_known(
    task: str, tokenizer: Any
) -> None:
    assert len(ids(tokenizer, TASKS[task].system)) == 1
    found = ids(tokenizer, prompt_string(task, "left"))
    assert tokenizer.unk_token_id not in found


def test_captions_that_it_was_not_made_from_have_no_unknown_word(tokenizer: Any) -> None:
    texts = [caption(compose_varied(50_000_000 + i), i) for i in range(500)]
    for text in texts + [prompt.text for prompt in prompts()]:
        assert tokenizer.unk_token_id not in ids(tokenizer, text), text


def test_any_text_has_ids(tokenizer: Any) -> None:
    unknown = tokenizer.unk_token_id
    red, house = ids(tokenizer, "red house")
    assert ids(tokenizer, "Red (zebra) HOUSE!") == [red, unknown, house]
    assert ids(tokenizer, "\u65e5\u672c h\u00e9llo") == [unknown, unknown]
    assert ids(tokenizer, "?!") == ids(tokenizer, "") == []
    snow, covered = ids(tokenizer, "snow-covered")
    assert unknown not in (snow, covered)


def test_words_and_ids_are_one_to_one(tokenizer: Any) -> None:
    text = "three pine trees left of a red house at dusk under a full moon"
    found = ids(tokenizer, text)
    assert tokenizer.convert_ids_to_tokens(found) == text.split()


def test_more_words_than_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="500 words do not fit in front of id 365"):
        scene_tokenizer.vocabulary([f"word{i}" for i in range(500)])
    assert scene_tokenizer.vocabulary(["b a, a"]).get(",") == 1
    assert scene_tokenizer.vocabulary([])[UNKNOWN] == 0
