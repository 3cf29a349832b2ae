"""From requests and ComfyUI's CONDITIONING to the conditions of Lumina-DiMOO: prompt tokens.

B  images    P  prompt tokens    Y, X  rows and columns of a source image's codes
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...containers import INDEX_SUFFIX
from ...guard import guarded
from ..architecture import LOADED_MODEL, Branches, Conditioning, GraphNode, Request
from ..conditioning import only_row
from .prompts import ALL_TASKS, TEXT, conditions, load_tokenizer, prompt_tokens, unknown_words
from .tokenizer import tokenizer_folder
from .transformer import Config

PROMPT = "shortcut_prompt"  # entry of a CONDITIONING


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model is asked to do, as a CONDITIONING holds it."""

    task: str
    text: str
    sources: tuple[Tensor, ...]  # codes (B, Y, X) of each source image


@dataclass(frozen=True, slots=True)
class PromptConditioner:
    """Turns prompts into prompt tokens (B, P), guided away from no text, and from no source images if there are any.

    As ComfyUI's CONDITIONING a prompt is one row (1, P, 1) of its tokens, and beside it the `Prompt` that they were
    made from. All zero = no text, so ComfyUI's own Conditioning Zero Out means what it says.
    """

    config: Config
    tokenizer: Any
    name: str  # of the model's file, for messages

    @classmethod
    def of(cls, config: Config, names: Sequence[str], path: Path | None) -> PromptConditioner:
        """Load the tokenizer beside the model's file.

        Raises:
            FileNotFoundError, ValueError: as `load_tokenizer`; the model has no file.
        """
        if path is None:
            raise ValueError(
                "a Lumina-DiMOO without a file has no tokenizer. Load it from its file."
            )
        name = (path.parent if path.name.endswith(INDEX_SUFFIX) else path).name
        return cls(config, load_tokenizer(tokenizer_folder(path), config), name)

    def conditions(self, request: Request, num_images: int) -> Branches:
        """Return the prompt tokens of each guidance branch.

        Raises:
            ValueError: as `conditions`; the task needs a prompt, and there is none.
        """
        task = _task(request)
        if request.prompt is None and task in ALL_TASKS and TEXT in ALL_TASKS[task].user:
            raise ValueError(f"the task {task!r} needs --prompt TEXT; '' stands for anything.")
        return self._branches(request, num_images)

    def draw(self, requests: Sequence[Request]) -> Callable[[int, torch.Generator], Branches]:
        """Return a function that draws random prompts, each as likely as the others.

        The images of a run have prompts of one length in tokens, so that nothing has to be padded.

        Raises:
            ValueError: there is no prompt, or one is too long.
        """
        if not requests:
            raise ValueError(
                "a text model needs prompts to show what it does: give --prompts FILE with one prompt a line."
            )
        found: defaultdict[int, list[Tensor]] = defaultdict(list)
        unwanted_1P = torch.empty(1, 0)
        for request in requests:
            wanted_1P, unwanted_1P = self._branches(request, 1)
            found[wanted_1P.shape[1]].append(wanted_1P)
        by_length = [torch.cat(rows) for _, rows in sorted(found.items())]
        share = torch.tensor([float(len(prompts_BP)) for prompts_BP in by_length])

        def draw(num_images: int, generator: torch.Generator) -> Branches:
            prompts_BP = by_length[int(share.multinomial(1, generator=generator))]
            index = torch.randint(len(prompts_BP), (num_images,), generator=generator)
            return prompts_BP[index], unwanted_1P.expand(num_images, -1)

        return draw

    def unknown_words(self, request: Request) -> tuple[str, ...]:
        """Return the words of both prompts that the model never saw, where its tokenizer lists those it saw."""
        reads_prompt = TEXT in ALL_TASKS[_task(request)].user
        texts = (request.prompt if reads_prompt else "", request.negative)
        return unknown_words(self.tokenizer, " ".join(text or "" for text in texts))

    def described(self, request: Request) -> dict[str, Any]:
        """Return the prompt as a picture's settings name it."""
        return {
            "task": _task(request),
            "prompt": request.prompt or "",
            "negative": request.negative or "",
        }

    def graph_nodes(self, request: Request) -> Sequence[GraphNode]:
        """Return ComfyUI's nodes of the prompt, and of what to guide away from if it says something."""
        texts = [request.prompt or ""]
        if request.negative is not None and request.negative.strip():
            texts.append(request.negative)
        inputs = {"model": LOADED_MODEL, "task": _task(request)}
        return [("ShortcutTextCondition", {**inputs, "text": text}) for text in texts]

    def to_conditioning(self, request: Request) -> Conditioning:
        """Return the CONDITIONING of a prompt."""
        prompt = Prompt(_task(request), request.prompt or "", request.sources)
        return [[self._row(prompt), {PROMPT: prompt}]]

    def from_conditioning(
        self, positive: Conditioning, negative: Conditioning | None, num_images: int
    ) -> Branches:
        """Return the prompt tokens of each guidance branch; of `negative` only the text counts.

        Raises:
            ValueError: a CONDITIONING is not a prompt for this model, or has another number of source images.
        """
        wanted = self._only_prompt(positive, "positive")
        for codes_BYX in wanted.sources:
            if len(codes_BYX) not in (1, num_images):
                raise ValueError(
                    f"positive has {len(codes_BYX)} source images, but latent_image {num_images} images. "
                    "Give one source image, or as many."
                )
        unwanted = "" if negative is None else self._only_prompt(negative, "negative").text
        request = Request(
            prompt=wanted.text, negative=unwanted, task=wanted.task, sources=wanted.sources
        )
        return self._branches(request, num_images)

    @property
    def end(self) -> int | None:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    def words(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, up to the first that ends it, without special tokens.

        Raises:
            ValueError: the tokenizer is damaged.
        """
        ids = list(ids)
        if self.end in ids:
            ids = ids[: ids.index(self.end)]
        with guarded(self.tokenizer.name_or_path, "fails at an answer", "Download it again."):
            return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _branches(self, request: Request, num_images: int) -> tuple[Tensor, ...]:
        return conditions(
            self.tokenizer,
            self.config,
            _task(request),
            request.prompt or "",
            negative=request.negative or "",
            sources=request.sources,
            num_images=num_images,
        )

    def _row(self, prompt: Prompt) -> Tensor:
        """Return the tokens of a prompt, without its images: (1, P, 1)."""
        ids = prompt_tokens(self.tokenizer, self.config, prompt.task, prompt.text)
        return torch.tensor(ids, dtype=torch.float32).view(1, -1, 1)

    def _only_prompt(self, conditioning: Conditioning, name: str) -> Prompt:
        row, entries = only_row(conditioning, name)
        prompt = entries.get(PROMPT)
        if not isinstance(prompt, Prompt):
            raise ValueError(
                f"{name} holds no prompt for {self.name}: it is a class, or text of "
                "another kind of model. Use Text Condition with this model."
            )
        if not row.any():
            return replace(prompt, text="")
        if not torch.equal(row, self._row(prompt)):
            raise ValueError(
                f"{name} does not hold the tokens of its text: it was made with another model, or a node such as "
                "Conditioning (Concat), Conditioning (Average) or ConditioningMultiply changed it. Wire Text "
                "Condition with this model directly."
            )
        return prompt


def _task(request: Request) -> str:
    return request.task or "text_to_image"
