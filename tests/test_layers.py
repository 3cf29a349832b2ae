"""The order of the layers: what each part may import, how long it is, loaded under one name."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import shortcut_pack.shortcut

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "shortcut"
HOST = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "folder_paths",
    "nodes",
    "server",
    "execution",
}


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Absolute names of all that `path` imports, also inside functions, from the pack's folder."""
    return imported_names(path.read_text(encoding="utf-8"), path.relative_to(ROOT).parent.parts)


def imported_names(source: str, package: tuple[str, ...]) -> set[str]:
    """As `imports`, of a source in `package`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            assert not node.level or node.level <= len(package) + 1
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def is_within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import comfy.utils", "comfy.utils"),
        ("def f():\n    from comfy import utils", "comfy.utils"),
        ("from ..train import fit", "shortcut.train.fit"),
        ("from .layers import sdpa", "shortcut.models.layers"),
        ("from ... import nodes", ".nodes"),
    ],
)
def test_control_imports_are_found_in_any_form(source, expected):
    assert expected in imported_names(source, ("shortcut", "models"))


@pytest.mark.parametrize("path", modules("shortcut"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_knows_nothing_of_its_hosts(path):
    for name in imports(path):
        assert not is_within(name, *HOST), f"{name}: only nodes/ may import the host"
        assert not name.startswith("."), (
            f"{name} is above the package: the core imports nothing of the pack"
        )


@pytest.mark.parametrize("path", modules("shortcut"), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_inside_the_core_are_relative(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not any(is_within(alias.name, "shortcut") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert not is_within(node.module or "", "shortcut")


SHARED = tuple(path.stem for path in (CORE / "models").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize(
    "path",
    [path for path in modules("shortcut/models") if path.parent.name != "models"],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_an_architecture_imports_no_other_and_nothing_above_it(path):
    allowed = (
        f"shortcut.models.{path.parent.name}",
        *(f"shortcut.models.{shared}" for shared in SHARED),
        "shortcut.schedule",
        "shortcut.text_schedule",
        "shortcut.denoiser",
        "shortcut.gather",
        "shortcut.containers",
        "shortcut.guard",
        "shortcut.writing",
    )
    for name in imports(path):
        if is_within(name, "shortcut") and name not in ("shortcut", "shortcut.models"):
            assert is_within(name, *allowed), f"{path.name} imports {name}"


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("guard", set()),
        ("schedule", {"shortcut.guard"}),
        ("noise", set()),
        ("gather", set()),
        ("denoiser", {"shortcut.gather", "shortcut.schedule"}),
        ("orders", {"shortcut.noise", "shortcut.schedule"}),
        ("sampler", {f"shortcut.{n}" for n in ("denoiser", "noise", "orders", "schedule")}),
        ("text_schedule", {"shortcut.guard", "shortcut.schedule"}),
        (
            "text",
            {
                "shortcut.denoiser",
                "shortcut.guard",
                "shortcut.noise",
                "shortcut.sampler",
                "shortcut.schedule",
                "shortcut.text_schedule",
            },
        ),
    ],
)
def test_the_sampling_core_imports_no_model(module, allowed):
    for name in imports(CORE / f"{module}.py"):
        if is_within(name, "shortcut"):
            assert is_within(name, *allowed), f"{module}.py imports {name}"


def test_the_schedule_is_plain_python():
    for name in imports(CORE / "schedule.py") - {"shortcut"}:
        is_plain = name.split(".")[0] in sys.stdlib_module_names
        assert is_plain or is_within(name, "shortcut.guard"), name


def test_every_core_file_is_loaded_under_one_name():
    for module in pkgutil.walk_packages(shortcut_pack.shortcut.__path__, "shortcut_pack.shortcut."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    names = defaultdict(set)
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if path and Path(path).is_relative_to(CORE):
            names[path].add(name)
    assert str(CORE / "sampler.py") in names
    assert {path: found for path, found in names.items() if len(found) > 1} == {}


def test_each_module_can_be_imported_first():
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in modules("shortcut")
        if path.stem != "__main__"
    ]
    code = f"""
import importlib, sys
for name in {names}:
    for known in [known for known in sys.modules if known.split(".")[0] == "shortcut"]:
        del sys.modules[known]
    importlib.import_module(name)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_loop_fits_on_one_screen():
    tree = ast.parse((CORE / "sampler.py").read_text(encoding="utf-8"))
    (loop,) = (
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "sample"
    )
    first = loop.body[1] if ast.get_docstring(loop) else loop.body[0]
    assert loop.end_lineno - first.lineno + 1 <= 40


@pytest.mark.parametrize(
    "path", modules("shortcut", "nodes"), ids=lambda path: str(path.relative_to(ROOT))
)
def test_no_file_is_longer_than_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize(
    "path",
    [p for p in modules("shortcut", "nodes") if "models" not in p.parts],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_nothing_outside_the_architectures_imports_one(path):
    """What the rest needs of an architecture is in `models.architecture`; the list of them is in `models`."""
    for name in imports(path):
        assert not is_within(name, "shortcut.models.maskgit", "shortcut.models.lumina_dimoo"), name


@pytest.mark.parametrize(
    "path", modules("shortcut", "nodes"), ids=lambda p: str(p.relative_to(ROOT))
)
def test_the_laboratory_is_not_imported(path):
    assert not any(is_within(name, "experiments") for name in imports(path))
