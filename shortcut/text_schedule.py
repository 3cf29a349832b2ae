"""The plans of runs that make text: block by block, or side by side with an image.

Pure Python, like `schedule.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from .guard import MAX_STEPS, MAX_WEIGHT, check_number, check_temperature, check_whole
from .schedule import Step, cosine_share, float32

MAX_TEXT = 4096  # tokens of an answer


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSettings:
    """What a user turns of a text. The defaults are those that Lumina-DiMOO documents for questions."""

    max_tokens: int = 128
    num_steps: int = (
        128  # passes of the model in all; at least one for each block, at most one for each token
    )
    block_length: int = 32  # tokens denoised together, one block after the other
    temperature: float = 0.0  # of the words; 0 = the most likely word

    def check(self) -> None:
        """Raise ValueError for the first setting that is out of range."""
        check_whole("max tokens", self.max_tokens, 1, MAX_TEXT)
        check_whole("text steps", self.num_steps, 1, MAX_STEPS)
        check_whole("block length", self.block_length, 1, MAX_TEXT)
        check_temperature("text temperature", self.temperature)


@dataclass(frozen=True, slots=True)
class Block:
    """Tokens `start` to `end` of a text, and the steps that make them."""

    start: int
    end: int
    steps: list[Step]


def text_plan(settings: TextSettings) -> list[Block]:
    """Return the blocks of a text in the order in which they are made.

    Each block has its share of the steps, by its length, and each step reveals the same number of tokens, earlier ones
    one more where they do not divide evenly.

    Source: Nie et al. 2025, LLaDA (arXiv 2502.09992), section 2.4 and appendix B.4: semi-autoregressive sampling.
    Differs: any lengths and steps are taken, where the original asks for multiples; no step reveals nothing.

    Raises:
        ValueError: a setting is out of range.
    """
    settings.check()
    starts = range(0, settings.max_tokens, settings.block_length)
    sizes = [min(settings.block_length, settings.max_tokens - start) for start in starts]
    blocks: list[Block] = []
    for start, size, num_steps in zip(
        starts, sizes, _by_size(settings.num_steps, sizes), strict=True
    ):
        counts = _even(size, num_steps)
        blocks.append(Block(start, start + size, _text_steps(counts, settings.temperature)))
    return blocks


def _by_size(total: int, sizes: list[int]) -> list[int]:
    """Return a number from 1 to the size of each, nearly in proportion to the sizes: `total` in all where it can be."""
    spare = min(max(total, len(sizes)), sum(sizes)) - len(sizes)
    room = sum(sizes) - len(sizes)
    shares = [divmod(spare * (size - 1), max(1, room)) for size in sizes]
    num_more = spare - sum(share for share, _ in shares)
    by_rest = sorted(range(len(sizes)), key=lambda i: -shares[i][1])
    more = set(by_rest[:num_more])
    return [1 + share + (i in more) for i, (share, _) in enumerate(shares)]


def _even(total: int, parts: int) -> list[int]:
    """Return `parts` numbers that sum to `total` and differ by one at most, larger ones first."""
    base, rest = divmod(total, parts)
    return [base + (i < rest) for i in range(parts)]


def _text_steps(counts: list[int], temperature: float) -> list[Step]:
    """Return steps that reveal so many tokens each; the most likely tokens come first."""
    num_masked, steps = sum(counts), []
    for index, num_revealed in enumerate(counts):
        steps.append(
            Step(
                index=index,
                num_masked=num_masked,
                num_revealed=num_revealed,
                mask_ratio=num_masked / sum(counts),
                is_full=True,
                guidance=(),
                temperature=temperature,
                score_temperature=1.0,
                choice_temperature=0.0,
            )
        )
        num_masked -= num_revealed
    return steps


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelSettings:
    """What a user turns of an image and a text that are made in the same passes.

    The defaults are those of the example in tyfeld/MMaDA-Parallel README.md.
    """

    max_tokens: int = 256  # of the text
    num_steps: int = 128  # steps, each of which reveals some of the text
    text_temperature: float = 0.0
    image_steps: int = 64  # of the steps, those that reveal some of the image too
    guidance: tuple[float, ...] = (0.0, 4.0)  # weights: of the text, of the source image
    # Of where codes are revealed, falling to 0. The codes themselves are drawn at 1; at 0 all is the most likely.
    temperature: float = 1.0

    def check(self) -> None:
        """Raise ValueError for the first setting that is out of range."""
        TextSettings(
            max_tokens=self.max_tokens,
            num_steps=self.num_steps,
            temperature=self.text_temperature,
        ).check()
        check_whole("image steps", self.image_steps, 1, self.num_steps)
        check_number("temperature", self.temperature, 0, MAX_WEIGHT)
        for weight in self.guidance:
            check_number("cfg", weight, 0, MAX_WEIGHT)


@dataclass(frozen=True, slots=True)
class ParallelStep:
    """What one step reveals of the text and of the image; None = nothing."""

    text: Step | None
    image: Step | None


def parallel_plan(settings: ParallelSettings, num_codes: int) -> list[ParallelStep]:
    """Return the steps of a run that makes a text and an image of `num_codes` codes.

    The text is revealed evenly. The image begins after a quarter of the steps and follows the cosine schedule.

    Source: tyfeld/MMaDA-Parallel MMaDA-Parallel-A/generators/parallel_generator.py generate_ti2ti.
    Differs: the last image step reveals all, where the original leaves one code to chance.

    Raises:
        ValueError: a setting is out of range.
    """
    settings.check()
    total = settings.num_steps
    left = [int(settings.max_tokens * (1 - i / total)) for i in range(total + 1)]
    counts = [before - after for before, after in pairwise(left)]
    texts = {step.index: step for step in _text_steps(counts, settings.text_temperature)}
    images = _image_steps(settings, num_codes)
    return [
        ParallelStep(text if (text := texts[i]).num_revealed else None, images.get(i))
        for i in range(total)
    ]


def _image_steps(settings: ParallelSettings, num_codes: int) -> dict[int, Step]:
    """Return the steps of the image by their index among all steps."""
    total, num_masked = settings.num_steps, num_codes
    chosen = _spread(total // 4, total - 1, settings.image_steps)
    steps: dict[int, Step] = {}
    for index in chosen:
        ratio = (index + 1) / total
        after = max(1, min(num_masked - 1, cosine_share(ratio, num_codes)))
        if index == chosen[-1]:
            after = 0
        if after == num_masked:
            continue
        steps[index] = Step(
            index=index,
            num_masked=num_masked,
            num_revealed=num_masked - after,
            mask_ratio=num_masked / num_codes,
            is_full=True,
            guidance=settings.guidance,
            temperature=float(settings.temperature > 0),
            score_temperature=1.0,
            choice_temperature=settings.temperature * (1 - ratio),
        )
        num_masked = after
    return steps


def _spread(first: int, last: int, count: int) -> list[int]:
    """Return `count` whole numbers from `first` to `last`, evenly spread; fewer if some are equal.

    Source: torch.linspace, which computes in float32 from the nearer end.
    """
    if count == 1:
        return [first]
    gap = float32((last - first) / (count - 1))
    rising = [float32(first + gap * i) for i in range(count // 2)]
    falling = [float32(last - gap * i) for i in reversed(range(count - count // 2))]
    return sorted({round(number) for number in (*rising, *falling)})
