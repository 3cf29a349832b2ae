"""Prompts of Lumina-DiMOO: from a task, a text and source images to the tokens in front of the target image.

    <system>what to do</system><user>text [source images]</user>

Each guidance branch has its own: the condition, the text to guide away from, and for tasks with source images the
condition without them.

Source: Alpha-VLLM/Lumina-DiMOO utils/prompt_utils.py, inference/inference_t2i.py and inference_i2i.py; facts in
tests/golden/README.md sections 5 and 7.
Differs: predictions of maps get the system prompt that the original has for them and misses by a spelling; a text that
is empty or blank is `<uncondition>`; a prompt longer than any in training is refused.

    B  images    P  prompt tokens    Y, X  rows and columns of a source image's codes
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...guard import guarded, naming
from ..text_rules import REASONED_EDIT, UNDERSTAND
from ..tokenizer_files import check_ids, check_tokenizer_files
from .transformer import Config, image_tokens

TEXT = "{text}"
UNCONDITION = "<uncondition>"  # stands for "no text"
TAGS = {  # token -> its name in transformer.SPECIAL_IDS
    "<system>": "system",
    "</system>": "/system",
    "<user>": "user",
    "</user>": "/user",
    UNCONDITION: "uncondition",
}
# Tokens that stand around images by their id, never in a text. Source: comments in train/train.py of the original,
# which tokenizes </answer> too. Those of boi and eoi it writes in two ways (<Image>, <IMAGE>), that of the newline
# nowhere; all are behind LLaDA's end of text (126081), where only special tokens are.
MARKS = {"<|mdm_mask|>": "mask", "<answer>": "boa", "</answer>": "eoa"}
NAMELESS = ("newline", "boi", "eoi")
# Source: train/train.py of the original cuts what it trains on to this length. The 4,096 positions of its config.json
# limit nothing: an image of 1024 x 1024 pixels has 4,164 tokens alone.
MAX_TEXT_TOKENS = 1024
MAX_CHARACTERS = 2**14  # of a text that a tokenizer is given at all
# Of the published model: its text ids, and those of the system prompt of text to image.
REAL_NUM_TEXT_IDS = 126_356
REAL_SYSTEM_IDS = [36289, 289, 3972, 4631, 297, 268, 3019, 12166, 13]
# Entry of a tokenizer_config.json: the words that the model saw in training, in one text. Published ones have none.
LEARNED_WORDS = "learned_words"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class Task:
    """What the model can be asked to do."""

    system: str
    num_sources: int  # images that it starts from
    user: str = TEXT  # what the user says; TEXT stands for the text given, if it matters


def _prediction(what: str) -> Task:
    system = "Perform dense prediction on the given images."
    return Task(system, 1, f"Generate a {what} according to the image.")


TASKS = {
    "text_to_image": Task("Generate an image according to the text prompt.", 0),
    "edit": Task(
        "Generate an image applying the following editing instruction based on the original image.",
        1,
    ),
    # The source is an edge map (canny or hed), a depth map or a pose (openpose).
    "control": Task(
        "Generate an image according to the text prompt and the given control image.", 1
    ),
    "subject": Task(
        "Generate an image according to the text prompt and the given object image.", 1
    ),
    # The sources are the picture and the one whose style it shall have.
    "style": Task(
        "Transform the current image into the style of the provided image.",
        2,
        "Transform the current image into the style of the provided image.",
    ),
    "predict_canny": _prediction("canny edge map"),
    "predict_hed": _prediction("hed edge map"),
    "predict_depth": _prediction("depth map"),
    "predict_normal": _prediction("normal map"),
    "predict_openpose": _prediction("pose estimation map"),
    "predict_sam2mask": _prediction("sam2 mask"),
    # The text names the view: left, right, back.
    "view": Task(
        "Generate a view-image based on the given image.",
        1,
        "Generate the {text} view based on the provided front view.",
    ),
    "other": Task("Generate an image according to the prompt and image.", 1),
}

# Tasks whose answer has a text. Source: as above, and tyfeld/MMaDA-Parallel MMaDA-Parallel-A/inference.py.
TEXT_TASKS = {
    UNDERSTAND: Task(
        "You are a multimodal model that can process both text and images. Answer the following question based on the "
        "provided images. Analyze each image and combine relevant details to answer.",
        1,
    ),
    REASONED_EDIT: TASKS["edit"],
}
ALL_TASKS = {**TASKS, **TEXT_TASKS}


def prompt_string(task: str, text: str = "", *, negative: bool = False) -> str:
    """Return the prompt as text. An empty or blank text becomes `<uncondition>`.

    Args:
        negative: True: `text` is what to guide away from, and stands there alone.

    Raises:
        ValueError: there is no such task, or it needs a text.
    """
    if task not in ALL_TASKS:
        raise ValueError(f"task must be one of {', '.join(ALL_TASKS)}, got {task!r}.")
    system, user = ALL_TASKS[task].system, ALL_TASKS[task].user
    said = text if text.strip() else UNCONDITION
    if not negative:
        if task == UNDERSTAND and not text.strip():
            raise ValueError("the question is empty. Ask one, such as 'Describe this image.'")
        if user not in (TEXT, user.replace(TEXT, "")) and not text.strip():
            raise ValueError(f"the task {task!r} says {user!r} and needs a text for it, got none.")
        said = user.replace(TEXT, said)
    return f"<system>{system}</system><user>{said}</user>"


def conditions(
    tokenizer: Any,
    config: Config,
    task: str,
    text: str = "",
    *,
    negative: str = "",
    sources: Sequence[Tensor] = (),
    num_images: int = 1,
) -> tuple[Tensor, ...]:
    """Return the prompt tokens (B, P) of each guidance branch, for `transformer.OnGrid`.

    The condition first, then what to guide away from: `negative` with the source images, and if there are any, the
    condition without them. So `Settings.guidance` has one weight without and two with source images: of the text and
    of the images (`settings.usual_settings`). A run without guidance takes the first branch alone.

    Args:
        tokenizer: from `load_tokenizer`.
        text: ignored by the tasks that say the same to all.
        negative: empty = `<uncondition>`.
        sources: codes (B, Y, X) of each source image, in sizes of their own; B is 1 or `num_images`.
        num_images: B of the result.

    Raises:
        ValueError: unknown task, another number of source images than it takes, or a text that is too long.
    """
    wanted = prompt_tokens(tokenizer, config, task, text)
    unwanted = prompt_tokens(tokenizer, config, task, negative, negative=True)
    num_sources = ALL_TASKS[task].num_sources
    if len(sources) != num_sources:
        raise ValueError(
            f"the task {task!r} takes {num_sources} source images, got {len(sources)}. "
            + ("Give them." if len(sources) < num_sources else "Choose another task.")
        )
    branches = [(wanted, sources), (unwanted, sources)]
    if sources:
        branches.append((wanted, ()))
    return tuple(_with_sources(ids, images, config, num_images) for ids, images in branches)


def prompt_tokens(
    tokenizer: Any, config: Config, task: str, text: str = "", *, negative: bool = False
) -> list[int]:
    """Return the tokens of `prompt_string`, without source images.

    Raises:
        ValueError: there is no such task, the text holds half of a character, there are more than `MAX_TEXT_TOKENS`, or
            the tokenizer makes one that the model has not.
    """
    what = "negative prompt" if negative else "prompt"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the {what} has {text[error.start]!r} at place {error.start}, which is half of a character (a surrogate), "
            "expected whole ones. Type that character anew."
        ) from error
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"the {what} has {len(text)} characters, expected at most {MAX_CHARACTERS}. Shorten it."
        )
    ids = _encoded(tokenizer, prompt_string(task, text, negative=negative), config.num_text_ids)
    if len(ids) > MAX_TEXT_TOKENS:
        raise ValueError(
            f"the {what} has {len(ids)} tokens with its system prompt, expected at most {MAX_TEXT_TOKENS}, the most "
            f"that the model was trained on. Shorten it by {len(ids) - MAX_TEXT_TOKENS} tokens, about "
            f"{1 + (len(ids) - MAX_TEXT_TOKENS) * 3 // 4} words."
        )
    return ids


def unknown_words(tokenizer: Any, text: str) -> tuple[str, ...]:
    """Return the words of a text, each once and in lower case, that the model never saw: they say nothing to it.

    Args:
        tokenizer: from `load_tokenizer`. One that does not list `LEARNED_WORDS` leaves no word unknown.
    """
    listed = tokenizer.init_kwargs.get(LEARNED_WORDS)
    if not isinstance(listed, str):
        return ()
    learned = set(listed.split())
    words = re.findall(r"\w+", text.replace(UNCONDITION, " ").lower())
    return tuple(dict.fromkeys(word for word in words if word not in learned))


def _with_sources(
    ids: list[int], sources: Sequence[Tensor], config: Config, num_images: int
) -> Tensor:
    """Return the tokens (B, P) of one branch: source images stand in front of the last tag."""
    text_1P = torch.tensor([ids])
    images = [image_tokens(codes_BYX.cpu() + config.num_text_ids, config) for codes_BYX in sources]
    parts = [text_1P[:, :-1], *images, text_1P[:, -1:]]
    return torch.cat([part.expand(num_images, -1) for part in parts], 1)


def load_tokenizer(folder: str | Path, config: Config) -> Any:
    """Load the tokenizer in `folder`, checked to be the model's. No code from the folder is run.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read, or it is that of another model.
    """
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no tokenizer.json. Put the model's {' and '.join(TOKENIZER_FILES)} there."
        )
    check_tokenizer_files(folder)
    from transformers import PreTrainedTokenizerFast  # slow to import

    what = "holds a tokenizer that cannot be read"
    with guarded(folder, what, f"Download {' and '.join(TOKENIZER_FILES)} again."):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    with naming(folder):
        check_tokenizer(tokenizer, config)
    return tokenizer


def check_tokenizer(tokenizer: Any, config: Config) -> None:
    """Raise ValueError if the tokenizer's special tokens are not those of the model, or its words are not.

    Tags are encoded. A token of `MARKS` may have another name, as those of small models do, but where its name is
    known it has the model's id; and at the ids of marks there is a token that no word of a text becomes. Words are
    compared only for the published vocabulary, whose unconditional prompt is known.
    """
    advice = "It is of another model: take the tokenizer files that lie beside the model's weights."
    for tag, name in TAGS.items():
        found, expected = _encoded(tokenizer, tag, config.num_text_ids), config.special_id(name)
        if found != [expected]:
            raise ValueError(
                f"its tokenizer makes {found} of {tag}, expected [{expected}]. {advice}"
            )
    ids, added = tokenizer.get_vocab(), tokenizer.added_tokens_decoder
    for token, name in MARKS.items():
        found, expected = ids.get(token), config.special_id(name)
        if found not in (None, expected):
            raise ValueError(
                f"its tokenizer has the token {token} as {found}, expected {expected}. {advice}"
            )
    for name in (*MARKS.values(), *NAMELESS):
        expected = config.special_id(name)
        if expected not in added:
            word = tokenizer.convert_ids_to_tokens(expected)
            found = "no token" if word is None else f"the word {word!r}"
            raise ValueError(
                f"its tokenizer has {found} at {expected}, expected a special token, the model's {name}. {advice}"
            )
    if config.num_text_ids == REAL_NUM_TEXT_IDS:
        system = TASKS["text_to_image"].system
        found = _encoded(tokenizer, system, config.num_text_ids)
        if found != REAL_SYSTEM_IDS:
            raise ValueError(
                f"its tokenizer makes {found} of {system!r}, expected {REAL_SYSTEM_IDS}. {advice}"
            )


def _encoded(tokenizer: Any, text: str, num_ids: int) -> list[int]:
    folder = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
    with guarded(folder, "fails at a text", f"Download {' and '.join(TOKENIZER_FILES)} again."):
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        check_ids(ids, num_ids)
        return ids
