"""Golden sets: what the originals computed, recorded in tests/golden with a tolerance."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from golden import detfill
from safetensors.torch import load_file
from shortcut_pack.shortcut import checkpoint as checkpoints
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class GoldenSet:
    """One set. Tensors are shared between tests: never change them in place."""

    info: dict[str, Any]  # the json file
    tensors: dict[str, Tensor]

    @property
    def args(self) -> dict[str, Any]:
        """Options of the recorded run."""
        return self.info["args"]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def numbered(self, prefix: str) -> Tensor:
        """The tensors `prefix`000, `prefix`001, ... stacked in front."""
        return torch.stack([self.tensors[n] for n in sorted(self.tensors) if n.startswith(prefix)])

    def weights(self, name: str) -> dict[str, Tensor]:
        """Tensors of the network that the set calls `name`, under the published keys."""
        described = self.info["weights"][name]
        if "detfill" in described:
            arrays = detfill.build(described["detfill"])
            detfill.check(described["detfill"], arrays)
            return {key: torch.from_numpy(array) for key, array in arrays.items()}
        prefix = described["prefix"]
        source = load(described["file"]).tensors if "file" in described else self.tensors
        return {k.removeprefix(prefix): v for k, v in source.items() if k.startswith(prefix)}

    def assert_close(self, actual: Tensor, name: str, what: str = "") -> None:
        """Compares with the tensor `name` of the set, within the tolerance that the set states."""
        self.assert_near(actual, self.tensors[name], what or name)

    def assert_near(self, actual: Tensor, expected: Tensor, what: str) -> None:
        """Compares within the tolerance that the set states; the dtype may differ."""
        tolerance = self.info["tolerance"]
        torch.testing.assert_close(
            actual.double(),
            expected.double(),
            rtol=tolerance["suggested_rtol"],
            atol=tolerance["suggested_atol"],
            msg=lambda text: f"{what}: {text}",
        )


@cache
def load(name: str) -> GoldenSet:
    """The set called `name`; read once."""
    info = json.loads((FOLDER / f"{name}.json").read_text())
    stored = FOLDER / f"{name}.safetensors"
    return GoldenSet(info, load_file(stored) if stored.exists() else {})


@cache
def tiny_maskgit(
    dtype: torch.dtype | None = None, head_dtype: torch.dtype | None = None
) -> tuple[Any, Any]:
    """The MaskGIT and its shortcut head in the maskgit_* sets: 36 tokens, 32 codes, 10 classes.

    Shared between tests: copy what is to be changed.
    """
    golden = load("maskgit_sampling_shortcut")
    sizes = golden.info["config"]["vit"]
    known = {"num_heads": sizes["heads"], "num_codes": sizes["codebook_size"]}
    model = checkpoints.from_tensors(golden.weights("vit"), kind="model", **known)
    head = checkpoints.from_tensors(
        golden.weights("head"), kind="head", num_heads=golden.args["head"]["num_heads"]
    )
    return checkpoints.build(model, dtype=dtype), checkpoints.build(head, dtype=head_dtype or dtype)
