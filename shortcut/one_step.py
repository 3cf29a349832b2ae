"""One-step students: all tokens in one pass, from codes that are partly random and partly masked.

A student has the network of its teacher, MaskGIT or Meissonic, and its file has the same keys: nothing in it says what
it is, so the user does, by the preset. It sees random codes at the tokens that are not masked, embeddings that noise
has changed, and no guidance; every token is drawn anew from its one answer.

Source: Zhu et al. 2025 (Di[M]O, arXiv 2503.15457); yuanzhi-zhu/DiMO sample_MaskGit.py and sample_Meissonic.py, with
their default ratio and perturbation. Meissonic is told timestep 0: there 0.6 becomes a whole number before its scale.
Differs: a code is drawn of the codebook alone, where the original draws the mask's id of MaskGIT too and takes the last
code for it; each image has noise of its own seed.
Not known: how good its pictures are here. Nobody here had the files.

    B  images    R  images x guidance branches    L  image tokens    D  width of the embeddings
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .denoiser import Conditions, Features, MaskedImageModel, PerturbedModel, Relayed
from .noise import seeded
from .schedule import Step

MASK_RATIO = 0.6  # of the tokens
PERTURBATION = 0.1  # share of noise in an embedding, as a sine
START, NOISE = 2, 3  # streams of an image's seed


class OneStepStudent(Relayed):
    """A model that sees its start in place of masked tokens.

    Args:
        num_codes: of the codebook.
        seed, image_indices: as for `generate`.

    Raises:
        ValueError: the model takes no changed embeddings.
    """

    def __init__(
        self,
        model: MaskedImageModel,
        num_codes: int,
        *,
        seed: int,
        image_indices: Sequence[int],
        device: torch.device | str,
    ):
        if not isinstance(model, PerturbedModel):
            raise ValueError(
                "this model has no one-step students: there are some of MaskGIT and Meissonic. Choose another preset."
            )
        super().__init__(model)
        self.student, self.seed, self.image_indices = model, seed, image_indices
        num_tokens = model.grid[0] * model.grid[1]
        generators = [seeded(seed, i, START) for i in image_indices]
        codes = [torch.randint(num_codes, (num_tokens,), generator=g) for g in generators]
        order = [torch.rand(num_tokens, generator=g).argsort() for g in generators]
        num_masked = max(1, round(MASK_RATIO * num_tokens))
        self.codes_BL = torch.stack(codes).to(device)
        self.is_masked_BL = (torch.stack(order) < num_masked).to(device)

    def features(
        self,
        codes_BL: Tensor,
        is_masked_BL: Tensor,
        conditions: Sequence[Conditions],
        step: Step,
    ) -> Features:
        """Run the start, whatever the tokens are."""
        return self.student.perturbed_features(
            self.codes_BL, self.is_masked_BL, conditions, step, self._perturbed
        )

    def _perturbed(self, x_RLD: Tensor) -> Tensor:
        """Return embeddings with noise, the same in each guidance branch; their variance stays."""
        noise = [
            torch.randn(x_RLD.shape[1:], generator=seeded(self.seed, i, NOISE))
            for i in self.image_indices
        ]
        noise_BLD = torch.stack(noise).to(x_RLD)
        noise_RLD = noise_BLD.repeat(len(x_RLD) // len(noise_BLD), 1, 1)
        return PERTURBATION * noise_RLD + math.sqrt(1 - PERTURBATION**2) * x_RLD
