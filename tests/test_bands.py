"""Large maps of VQ models in bands of rows: the same pictures and codes as whole ones."""

from __future__ import annotations

from typing import Any

import builders
import pytest
import torch
from shortcut_pack.shortcut import checkpoint as checkpoints
from shortcut_pack.shortcut.models import amused_vq as lumina_vq
from shortcut_pack.shortcut.models import bands, lumina_dimoo

LUMINA = builders.random_checkpoint(
    lumina_dimoo.ARCHITECTURE.vqs[0], lumina_vq.Config((8, 16, 16), 2, 8, 32, 4), seed=5
)


@pytest.fixture(params=["taming", "lumina"])
def vq(request: pytest.FixtureRequest) -> Any:
    return checkpoints.build(builders.vq() if request.param == "taming" else LUMINA)


def in_bands(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(bands, "LARGE", 1)
    monkeypatch.setattr(bands, "ROWS", rows)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3, 8, 64])
def test_bands_equal_the_whole(vq: Any, rows: int, monkeypatch: pytest.MonkeyPatch):
    side = vq.config.downscale
    codes_Bhw = torch.arange(2 * 5 * 7).reshape(2, 5, 7) % vq.config.num_codes
    pixels_BCYX = torch.rand(2, 3, 5 * side, 7 * side, generator=torch.Generator().manual_seed(0))
    whole, latents = vq.decode(codes_Bhw), vq.latents(pixels_BCYX * 2 - 1)
    in_bands(monkeypatch, rows)
    assert (vq.decode(codes_Bhw) - whole).abs().max() < 1e-4 * whole.abs().max()
    again = vq.latents(pixels_BCYX * 2 - 1)
    assert (again - latents).abs().max() < 1e-4 * latents.abs().max()


def alone(num_rows: int) -> list[tuple[slice, slice, slice]]:
    """Each row without its neighbours."""
    return [(slice(row, row + 1), slice(row, row + 1), slice(0, 1)) for row in range(num_rows)]


@torch.no_grad()
def test_bands_without_their_neighbours_are_seen(vq: Any, monkeypatch: pytest.MonkeyPatch):
    codes_Bhw = torch.arange(5 * 7).reshape(1, 5, 7) % vq.config.num_codes
    whole = vq.decode(codes_Bhw)
    in_bands(monkeypatch, 8)
    monkeypatch.setattr(bands, "bands", alone)
    assert (vq.decode(codes_Bhw) - whole).abs().max() > 1e-2 * whole.abs().max()
