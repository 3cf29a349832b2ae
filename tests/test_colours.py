"""The colours of previews."""

from __future__ import annotations

import pytest
import torch
from shortcut_pack.shortcut import colours

V = 24


def flat_decoder(true_V3):
    """A decoder that paints every code in its own colour, 4 x 4 pixels each."""

    def decode(codes_Bhw):
        cells_BChw = true_V3[codes_Bhw].movedim(-1, 1)
        return cells_BChw.repeat_interleave(4, 2).repeat_interleave(4, 3)

    return decode


def test_measured_colours_are_the_means_of_the_cells():
    generator = torch.Generator().manual_seed(0)
    true_V3 = torch.rand(V, 3, generator=generator) * 2 - 1
    codes_Bhw = torch.randint(V - 1, (4, 6, 6), generator=generator)  # the last code is missing
    found_V3 = colours.measured(codes_Bhw, flat_decoder(true_V3)(codes_Bhw), V)
    torch.testing.assert_close(found_V3[:-1], true_V3[:-1])
    assert found_V3[-1].tolist() == [0, 0, 0]


def test_estimated_colours_follow_the_decoder():
    generator = torch.Generator().manual_seed(1)
    codebook_VC = torch.randn(V, 8, generator=generator)
    slopes_C3 = torch.randn(8, 3, generator=generator) * 0.05
    found_V3 = colours.estimated(codebook_VC, flat_decoder(codebook_VC @ slopes_C3))
    for found, true in zip(found_V3.T, (codebook_VC @ slopes_C3).T, strict=True):
        assert torch.corrcoef(torch.stack([found, true]))[0, 1] > 0.97
    assert found_V3.abs().max() <= 1 and 0.3 < found_V3.std() < 0.5


def test_text_keeps_colours_to_the_byte():
    colours_V3 = torch.rand(V, 3, generator=torch.Generator().manual_seed(2)) * 2 - 1
    found_V3 = colours.from_text(colours.to_text(colours_V3), V)
    torch.testing.assert_close(found_V3, colours_V3, atol=1 / 255 + 1e-6, rtol=0)


@pytest.mark.parametrize(
    ("text", "message"), [("zz", "not hexadecimal"), ("00ff00", "has 1 colours, expected .* 24")]
)
def test_damaged_text_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        colours.from_text(text, V)
