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
from torch.nn.utils.rnn import pad_sequence

from ...containers import INDEX_SUFFIX
from ...guard import guarded
from ..architecture import LOADED_MODEL, Branches, Conditioning, GraphNode, Request
from ..conditioning import batch_of, in_turn
from .prompts import ALL_TASKS, TEXT, conditions, load_tokenizer, prompt_tokens, unknown_words
from .tokenizer import tokenizer_folder
from .transformer import Config

PROMPT = "shortcut_prompt"  # entry of a CONDITIONING


@dataclass(frozen=True, slots=True)
class Prompts:
    """What the model is asked to do, as a CONDITIONING holds it."""

    task: str
    texts: tuple[str, ...]  # one, or one for each image
    sources: tuple[Tensor, ...]  # codes (B, Y, X) of each source image


@dataclass(frozen=True, slots=True)
class Ragged:
    """Prompt tokens of images whose prompts have different lengths. Rows of one length are a tensor (B, P)."""

    rows: tuple[Tensor, ...]  # (1, P) of each image

    @property
    def shape(self) -> tuple[int, int]:
        """Images, and tokens of the longest prompt."""
        return len(self.rows), max(row.shape[1] for row in self.rows)

    def to(self, device: Any, /) -> Ragged:
        return Ragged(tuple(row.to(device) for row in self.rows))

    def __getitem__(self, rows: Any, /) -> Ragged | Tensor:
        return batched([self.rows[row] for row in torch.arange(len(self.rows))[rows].tolist()])

    def __len__(self) -> int:
        return len(self.rows)


def batched(rows: Sequence[Tensor]) -> Ragged | Tensor:
    """Return the prompt tokens (1, P) of each image as one condition."""
    is_even = len({row.shape[1] for row in rows}) == 1
    return torch.cat(list(rows)) if is_even else Ragged(tuple(rows))


@dataclass(frozen=True, slots=True)
class PromptConditioner:
    """Turns prompts into prompt tokens (B, P), guided away from no text, and from no source images if there are any.

    As ComfyUI's CONDITIONING prompts are one row (B, P, 1) of their tokens, shorter ones with zeros behind, and beside
    it the `Prompts` that they were made from. All zero = no text, so ComfyUI's own Conditioning Zero Out means what it
    says.
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

    def to_conditioning(self, requests: Sequence[Request]) -> Conditioning:
        """Return the CONDITIONING of prompts."""
        texts = tuple(request.prompt or "" for request in requests)
        prompts = Prompts(_task(requests[0]), texts, requests[0].sources)
        return [[self._rows(prompts), {PROMPT: prompts}]]

    def from_conditioning(
        self, positive: Conditioning, negative: Conditioning | None, num_images: int
    ) -> Branches:
        """Return the prompt tokens of each guidance branch; of `negative` only the text counts.

        Raises:
            ValueError: a CONDITIONING is not a prompt for this model, or has another number of source images.
        """
        wanted = self._prompts(positive, "positive")
        for codes_BYX in wanted.sources:
            if len(codes_BYX) not in (1, num_images):
                raise ValueError(
                    f"positive has {len(codes_BYX)} source images, but latent_image {num_images} images. "
                    "Give one source image, or as many."
                )
        unwanted = ("",) if negative is None else self._prompts(negative, "negative").texts
        which = in_turn(len(wanted.texts), "positive", num_images).tolist()
        others = in_turn(len(unwanted), "negative", num_images).tolist()
        sources = [codes_BYX.expand(num_images, -1, -1).split(1) for codes_BYX in wanted.sources]
        images = [
            self._branches(
                Request(
                    prompt=wanted.texts[which[image]],
                    negative=unwanted[others[image]],
                    task=wanted.task,
                    sources=tuple(codes[image] for codes in sources),
                ),
                1,
            )
            for image in range(num_images)
        ]
        return tuple(batched(rows) for rows in zip(*images, strict=True))

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

    def _rows(self, prompts: Prompts) -> Tensor:
        """Return the tokens of prompts, without their images: (B, P, 1)."""
        rows = [
            torch.tensor(prompt_tokens(self.tokenizer, self.config, prompts.task, text))
            for text in prompts.texts
        ]
        return pad_sequence(rows, batch_first=True).float().unsqueeze(-1)

    def _prompts(self, conditioning: Conditioning, name: str) -> Prompts:
        rows, entries = batch_of(conditioning, name)
        prompts = entries.get(PROMPT)
        if not isinstance(prompts, Prompts):
            raise ValueError(
                f"{name} holds no prompt for {self.name}: it is a class, or text of "
                "another kind of model. Use Text Condition with this model."
            )
        if not rows.any():
            return replace(prompts, texts=("",))
        if not torch.equal(rows, self._rows(prompts)):
            raise ValueError(
                f"{name} does not hold the tokens of its text: it was made with another model, or a node such as "
                "Conditioning (Concat), Conditioning (Average) or ConditioningMultiply changed it. Wire Text "
                "Condition with this model directly."
            )
        return prompts


def _task(request: Request) -> str:
    return request.task or "text_to_image"
