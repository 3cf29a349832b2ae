"""Tell what can stand in a picture of the world: its nouns, colours and size.

Lengths are fractions of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of thing; its size is that of the front row."""

    noun: str
    plural: str
    width: float
    height: float
    colours: tuple[str, ...] = ("",)  # "" = it has no colour to name
    detail: str = ""  # what the colour belongs to, e.g. "sail"; "" = the thing itself
    synonyms: tuple[tuple[str, str], ...] = ()


KINDS: dict[str, Kind] = {
    kind.noun: kind
    for kind in (
        Kind("house", "houses", 0.26, 0.28, ("red", "blue", "yellow", "white"), "",
             (("cottage", "cottages"), ("home", "homes"))),
        Kind("lighthouse", "lighthouses", 0.12, 0.36, ("red", "blue")),
        Kind("windmill", "windmills", 0.24, 0.33),
        Kind("tent", "tents", 0.22, 0.165, ("red", "blue", "green")),
        Kind("pine tree", "pine trees", 0.15, 0.29, synonyms=(("pine", "pines"), ("fir", "firs"))),
        Kind("round tree", "round trees", 0.17, 0.27, ("green", "orange", "pink")),
        Kind("palm tree", "palm trees", 0.24, 0.36, synonyms=(("palm", "palms"),)),
        Kind("cactus", "cacti", 0.15, 0.25),
        Kind("street lamp", "street lamps", 0.07, 0.28, synonyms=(("lamp", "lamps"),)),
        Kind("flower", "flowers", 0.095, 0.14, ("red", "yellow", "purple")),
        Kind("car", "cars", 0.28, 0.135, ("red", "blue", "yellow", "green")),
        Kind("person", "people", 0.105, 0.225, ("red", "blue", "yellow", "green"), "shirt"),
        Kind("snowman", "snowmen", 0.16, 0.23, ("red", "blue", "green"), "scarf"),
        Kind("cow", "cows", 0.25, 0.18, ("brown", "black")),
        Kind("sheep", "sheep", 0.19, 0.15),
        Kind("dog", "dogs", 0.19, 0.16, ("brown", "white")),
        Kind("cat", "cats", 0.14, 0.165, ("black", "orange", "white")),
        Kind("boat", "boats", 0.18, 0.2, ("white", "red", "yellow"), "sail",
             (("sailboat", "sailboats"), ("sailing boat", "sailing boats"))),
        Kind("balloon", "balloons", 0.14, 0.2, ("red", "blue", "yellow", "purple"), "",
             (("hot air balloon", "hot air balloons"),)),
        Kind("bird", "birds", 0.08, 0.03),
        Kind("cloud", "clouds", 0.2, 0.1),
        Kind("fence", "fences", 1.0, 0.08, ("white", "brown")),
        Kind("bridge", "bridges", 0.5, 0.12),
        Kind("sun", "suns", 0.16, 0.16),
        Kind("full moon", "full moons", 0.15, 0.15),
        Kind("crescent moon", "crescent moons", 0.15, 0.15),
    )
}  # fmt: skip
