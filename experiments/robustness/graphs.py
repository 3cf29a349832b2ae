"""Make ComfyUI graphs of this pack's nodes at random: sound ones, wrong ones, and the references.

A graph has the API format: {id: {"class_type", "inputs"}}; a link is [id, output].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from shortcut.schedule import ORDERS

CLASSES, TEXT = "scenes (shipped)", "scenes text (shipped)"
SIZE = 128  # pixels of the class model
CLASS_NAMES = ("dusk coast", "night snow", "day forest", "dawn desert", "3", "15")
PROMPTS = ("A forest at dawn with three pine trees.", "A snowy night.", "", "the sea, a red house")
TYPES = ("default", "default", "float32", "bfloat16")
Graph = dict[str, dict[str, Any]]
Link = list[Any]


@dataclass(slots=True)
class Nodes:
    """A graph in the making."""

    graph: Graph = field(default_factory=dict)

    def add(self, name: str, **inputs: Any) -> str:
        """Add a node and return its id."""
        number = str(len(self.graph) + 1)
        self.graph[number] = {"class_type": name, "inputs": inputs}
        return number

    def load(self, model: str, weight_dtype: str = "default") -> tuple[Link, Link]:
        """Add the loader. Return model and VAE."""
        node = self.add(
            "ShortcutLoadMIGM", model_name=model, vq_name="auto", weight_dtype=weight_dtype
        )
        return [node, 0], [node, 1]

    def head(self, name: str) -> Link:
        """Add the loader of a head."""
        return [self.add("ShortcutLoadHead", head_name=name, weight_dtype="default"), 0]

    def condition(self, model: Link, is_text: bool, said: str, **more: Any) -> Link:
        """Add the node of a class or of a text."""
        if is_text:
            inputs = {"text": said, "task": "text_to_image", **more}
            return [self.add("ShortcutTextCondition", model=model, **inputs), 0]
        return [self.add("ShortcutClassCondition", model=model, class_name=said), 0]

    def empty(self, width: int = SIZE, height: int = SIZE, batch_size: int = 1) -> Link:
        """Add an empty latent image."""
        node = self.add("EmptyLatentImage", width=width, height=height, batch_size=batch_size)
        return [node, 0]

    def sample(self, model: Link, positive: Link, latent: Link, is_text: bool, **more: Any) -> Link:
        """Add the sampler."""
        custom = {"steps": 4, "full_steps": 2, "cfg": 3.0, "cfg_ramp": not is_text,
                  "schedule": "lumina" if is_text else "arccos", "temperature": 0.9,
                  "choice_temperature": 4.0, "cfg_image": 1.5, "order": "confidence"}  # fmt: skip
        links = {"model": model, "positive": positive, "latent_image": latent}
        given = {"preset": "custom", "seed": 0, "denoise": 1.0}
        given |= {f"preset.{name}": more.pop(name, value) for name, value in custom.items()}
        return [self.add("ShortcutSampler", **links, **(given | more)), 0]

    def decode(self, latent: Link, vae: Link) -> Link:
        """Add the decoder."""
        return [self.add("VAEDecode", samples=latent, vae=vae), 0]

    def save(self, image: Link, prefix: str = "soak") -> None:
        """Add the node that saves."""
        self.add("SaveImage", images=image, filename_prefix=prefix)


def references() -> list[Graph]:
    """Return graphs whose pictures must stay the same: class, text, inpainting, each with and without a head."""
    found = []
    for is_text in (False, True):
        for has_head in (True, False):
            nodes, name = Nodes(), TEXT if is_text else CLASSES
            model, vae = nodes.load(name)
            positive = nodes.condition(model, is_text, PROMPTS[0] if is_text else CLASS_NAMES[0])
            more = {"head": nodes.head(name)} if has_head else {}
            more |= {"seed": 7, "steps": 8, "full_steps": 3}
            latent = nodes.sample(model, positive, nodes.empty(), is_text, **more)
            again = nodes.sample(model, positive, masked(nodes, latent), is_text, **more, cfg=1.0)
            nodes.save(nodes.decode(latent, vae), "reference")
            nodes.save(nodes.decode(again, vae), "reference")
            found.append(nodes.graph)
    return found


def masked(nodes: Nodes, latent: Link) -> Link:
    """Add a mask over the lower half."""
    black = [nodes.add("SolidMask", value=0.0, width=SIZE, height=SIZE), 0]
    white = [nodes.add("SolidMask", value=1.0, width=SIZE, height=SIZE // 2), 0]
    placed = {"x": 0, "y": SIZE // 2, "operation": "add"}
    mask = [nodes.add("MaskComposite", destination=black, source=white, **placed), 0]
    return [nodes.add("SetLatentNoiseMask", samples=latent, mask=mask), 0]


def sound(random: Random, most_steps: int = 8) -> Graph:
    """Return a graph that must give pictures: any model, head, settings and task."""
    is_text, nodes = random.random() < 0.5, Nodes()
    name = TEXT if is_text else CLASSES
    model, vae = nodes.load(name, random.choice(TYPES))
    said = random.choice(PROMPTS if is_text else CLASS_NAMES)
    positive = nodes.condition(model, is_text, said)
    side = random.choice((48, 64, SIZE)) if is_text else SIZE
    latent = nodes.empty(side, SIZE, random.choice((1, 1, 2, 3)))
    steps = random.randint(most_steps // 8, most_steps)
    more: dict[str, Any] = {
        "seed": random.getrandbits(64),
        "steps": steps,
        "full_steps": random.randint(1, steps),
        "cfg": random.choice((0.0, 1.0, 2.8)),
        "temperature": random.choice((0.0, 0.5, 1.0)),
        "schedule": random.choice(("arccos", "cosine", "linear", "root", "square", "lumina")),
        "order": random.choice(ORDERS),
    }
    if random.random() < 0.7:
        more["head"] = nodes.head(name)
    if random.random() < 0.3:
        more["negative"] = nodes.condition(
            model, is_text, random.choice((said, "3" if not is_text else "x"))
        )
    made = nodes.sample(model, positive, latent, is_text, **more)
    picture = nodes.decode(made, vae)
    then = random.random()
    if then < 0.2 and side == SIZE:
        encoded = [nodes.add("VAEEncode", pixels=picture, vae=vae), 0]
        again = nodes.sample(model, positive, masked(nodes, encoded), is_text, **more)
        picture = nodes.decode(again, vae)
    elif then < 0.35:
        again = nodes.sample(model, positive, made, is_text, **more | {"denoise": 0.4})
        picture = nodes.decode(again, vae)
    elif then < 0.5 and is_text:
        change = nodes.condition(model, True, "Make it night.", task="edit", vae=vae, image=picture)
        more.pop("negative", None)
        picture = nodes.decode(nodes.sample(model, change, latent, True, **more), vae)
    nodes.save(picture)
    return nodes.graph


def training(random: Random, name: str) -> Graph:
    """Return a graph that trains a head for a few iterations, saves it and samples with it."""
    is_text, nodes = random.random() < 0.3, Nodes()
    model, vae = nodes.load(TEXT if is_text else CLASSES)
    trained = nodes.add(
        "ShortcutTrainHead",
        model=model,
        iterations=random.randint(1, 3),
        teacher_steps=3,
        seed=random.getrandbits(32),
        checkpoint_name=name,
        prompts="a tree\nsnow at night" if is_text else "",
        learning_rate=0.0,
    )
    positive = nodes.condition(model, is_text, "a tree" if is_text else "3")
    made = nodes.sample(model, positive, nodes.empty(), is_text, head=[trained, 0])
    nodes.save(nodes.decode(made, vae))
    nodes.save([trained, 1])
    nodes.add("ShortcutSaveHead", head=[trained, 0], filename_prefix="soak")
    return nodes.graph


def wrong(random: Random) -> Graph:
    """Return a graph that a node must refuse in words, at once."""
    is_text, nodes = random.random() < 0.5, Nodes()
    name, other = (TEXT, CLASSES) if is_text else (CLASSES, TEXT)
    model, vae = nodes.load(name)
    said = PROMPTS[0] if is_text else CLASS_NAMES[0]
    latent, more = nodes.empty(), {}
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: more.update(head=nodes.head(other)),
        lambda: more.update(steps=_linked(nodes, random.choice((0, -5, 10**6, 2**31)))),
        lambda: more.update(full_steps=_linked(nodes, 0), head=nodes.head(name)),
        lambda: nodes.graph[latent[0]]["inputs"].update(width=1 if is_text else 64),
    )
    kind = random.randrange(len(kinds) + 1)
    if kind < len(kinds):
        kinds[kind]()
    else:
        is_text = not is_text  # the condition of the other kind of model
    if kind == 3 and is_text:  # Empty Latent Image itself rounds sizes: a latent of a video model
        nodes.graph[latent[0]] = {
            "class_type": "EmptyHunyuanLatentVideo",
            "inputs": {"width": 64, "height": 64, "length": 5, "batch_size": 1},
        }
    positive = nodes.condition(
        model, is_text, "no such class" if not is_text and kind > 3 else said
    )
    made = nodes.sample(model, positive, latent, is_text, **more)
    nodes.save(nodes.decode(made, vae))
    return nodes.graph


def _linked(nodes: Nodes, value: int) -> Link:
    """Add a number whose range no widget limits."""
    return [nodes.add("PrimitiveInt", value=value), 0]
