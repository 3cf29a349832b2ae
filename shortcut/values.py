"""The values of tensors: a fingerprint, and whether they are finite."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor

FINGERPRINT_VALUES = 4096  # of each tensor
WHOLE = 2**22  # values up to which a tensor is always looked at in full
PART = 2**16  # values looked at in a larger one
CHUNK = 2**24  # values converted at a time


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits that tell trained weights apart, but not the types that they are stored in.

    Hashed are names, shapes and the signs of the first values of each tensor: a conversion between
    float32, float16, bfloat16 and float8 changes values, but no signs.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        is_negative = tensor.flatten()[:FINGERPRINT_VALUES].float().signbit()
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(is_negative.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def check_finite(tensors: Mapping[str, Tensor], *, is_full: bool = False) -> None:
    """Check that values are finite.

    Of tensors with more than 4M values only the first rows are looked at: else a model of 16 GB
    would be read from disk once for this and again for its work. That finds weights that training
    or a conversion has spoiled as a whole; single values are found by the sampler, whose logits
    they make NaN in the first step.

    Args:
        is_full: True: all values, as after a conversion, which has read them anyway.

    Raises:
        ValueError: some are not.
    """
    for name, tensor in tensors.items():
        part = (
            tensor if is_full or tensor.numel() <= WHOLE else tensor.split(_rows(tensor, PART))[0]
        )
        # One sum is several times cheaper than a test of each value, and shows the same.
        pieces = part.split(_rows(part, CHUNK)) if part.ndim else (part,)
        if not all(piece.float().sum().isfinite() for piece in pieces):
            raise ValueError(
                f"tensor {name!r} holds NaN, infinite or, in {tensor.dtype}, too large values. "
                "Choose another file, or another type if this is a conversion."
            )


def _rows(tensor: Tensor, num_values: int) -> int:
    """Return how many rows hold `num_values`; at least one."""
    return max(1, num_values * len(tensor) // tensor.numel())
