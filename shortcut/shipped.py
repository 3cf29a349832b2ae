"""The files that come with the pack: a small model of procedural landscapes, its VQGAN and its shortcut head."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "shipped"
MODEL = FOLDER / "scenes-maskgit.safetensors"
VQ = FOLDER / "scenes-vqgan.safetensors"
HEAD = FOLDER / "scenes-maskgit-head.safetensors"
JUDGE = FOLDER / "scenes-judge.safetensors"
