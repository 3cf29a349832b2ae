"""The parameters that ComfyUI's schema classes take, release by release, as data in comfy_schema.json.

    python tests/comfy_schema.py COMFY_DIR ...     adds the releases in these folders to the data, or replaces them

Needs nothing but the source: no ComfyUI is imported. A parameter that may be left out is written `name=`.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".json")
SOCKETS = ("Input", "Output")
PARTS = (*SOCKETS, "Option")  # the last: a choice of DynamicCombo
CONSTRUCTED = ("Schema", "NodeOutput")
OVERRIDDEN = ("ComfyNode", "ComfyExtension")


@dataclass
class Release:
    """What one release of ComfyUI takes, or what several take alike.

    Attributes:
        types: by name in `io`, the type that a graph holds, and what its Input and Output are made with if it has them.
        constructors: parameters by name of the class.
        methods: what a subclass may override, by name of the class.
    """

    types: dict[str, dict[str, str]]
    constructors: dict[str, list[str]]
    methods: dict[str, list[str]]

    def check(self, constructor: str, given: Any) -> None:
        """Raises TypeError for names of arguments that the constructor does not take, or that it lacks."""
        parameters = self.constructors[constructor]
        names = {parameter.rstrip("=") for parameter in parameters}
        if unknown := sorted(set(given) - names):
            raise TypeError(f"io.{constructor} takes no {unknown}, expected some of {parameters}.")
        needed = {parameter for parameter in parameters if parameter.isidentifier()}
        if missing := sorted(needed - set(given)):
            raise TypeError(f"io.{constructor} needs {missing}.")


def recorded() -> dict[str, Release]:
    """The recorded releases, by version."""
    data = json.loads(FILE.read_text(encoding="utf-8"))
    return {version: Release(**content) for version, content in data.items()}


def common() -> Release:
    """What every recorded release takes."""
    first, *others = recorded().values()
    types, constructors, methods = dict(first.types), {}, {}
    for release in others:
        types = {name: found for name, found in types.items() if release.types.get(name) == found}
    for name, parameters in first.constructors.items():
        if all(name in release.constructors for release in others):
            lists = [parameters, *(release.constructors[name] for release in others)]
            constructors[name] = _shared(lists)
    for name, found in first.methods.items():
        methods[name] = [m for m in found if all(m in release.methods[name] for release in others)]
    return Release(types, constructors, methods)


def _shared(lists: list[list[str]]) -> list[str]:
    """The parameters in all lists; one may be left out if it may everywhere."""
    shared = set.intersection(*({p.rstrip("=") for p in parameters} for parameters in lists))
    needed = {p for parameters in lists for p in parameters if not p.endswith("=")}
    return [
        p.rstrip("=") if p.rstrip("=") in needed else p for p in lists[0] if p.rstrip("=") in shared
    ]


# ------------------------------------------------------------------------------------------- from the source


def version_of(comfy_dir: Path) -> str:
    """The release in a ComfyUI folder."""
    for statement in _parsed(comfy_dir / "comfyui_version.py").body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__version__":
            return ast.literal_eval(statement.value)
    raise ValueError(f"{comfy_dir} states no version in comfyui_version.py.")


def read(comfy_dir: Path) -> Release:
    """The release in a ComfyUI folder."""
    api = comfy_dir / "comfy_api" / "latest"
    io, entry = _parsed(api / "_io.py"), _parsed(api / "__init__.py")
    # Not all of the latter's: it has an `Input` of its own.
    extension = {"ComfyExtension": dict(_classes(entry.body))["ComfyExtension"]}
    classes = dict(_classes(io.body)) | extension
    public = next(
        ast.literal_eval(statement.value)
        for statement in io.body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"
    )
    types, used = {}, list(CONSTRUCTED)
    for name in public:
        io_type = _io_type(classes.get(name))
        if io_type is not None:
            constructors = {socket: _socket(f"{name}.{socket}", classes) for socket in PARTS}
            types[name] = {"io_type": io_type} | {s: c for s, c in constructors.items() if c}
            used += filter(None, constructors.values())
    return Release(
        types=types,
        constructors={name: _parameters(name, classes) for name in sorted({*used, *SOCKETS})},
        methods={name: _methods(classes[name]) for name in OVERRIDDEN},
    )


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _classes(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.ClassDef]]:
    """Every class with its name, as `Int.Input`."""
    for statement in body:
        if isinstance(statement, ast.ClassDef):
            yield prefix + statement.name, statement
            yield from _classes(statement.body, f"{prefix}{statement.name}.")


def _io_type(found: ast.ClassDef | None) -> str | None:
    """What `comfytype(io_type=...)` above a class says."""
    for decorator in found.decorator_list if found else []:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "comfytype":
            return next(ast.literal_eval(k.value) for k in decorator.keywords if k.arg == "io_type")
    return None


def _socket(name: str, classes: dict[str, ast.ClassDef]) -> str | None:
    """The class whose constructor makes the Input or Output `name`; None: the type has none."""
    if name in classes:
        return _constructor(name, classes)
    owner, _, socket = name.rpartition(".")
    bases = [base for base in map(ast.unparse, classes[owner].bases) if base in classes]
    # As `comfytype` does with a class that derives from none of these.
    for base in bases or ["ComfyTypeIO"] * (owner not in ("_ComfyType", "ComfyTypeIO")):
        if found := _socket(f"{base}.{socket}", classes):
            return found
    return None


def _constructor(name: str, classes: dict[str, ast.ClassDef]) -> str:
    """The class, of `name` and those that it derives from, that states the parameters."""
    found = classes[name]
    if any(isinstance(s, ast.FunctionDef) and s.name == "__init__" for s in found.body):
        return name
    if any(ast.unparse(decorator) == "dataclass" for decorator in found.decorator_list):
        return name
    # Names of bases are those of the module: inside `class Input(Input)` the first is not there yet.
    return _constructor(ast.unparse(found.bases[0]), classes)


def _parameters(name: str, classes: dict[str, ast.ClassDef]) -> list[str]:
    """The parameters of a class that states them."""
    for statement in classes[name].body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            given = statement.args
            names = [a.arg for a in (*given.posonlyargs, *given.args)][1:]
            needed = len(names) - len(given.defaults)
            some = [f"{n}=" if i >= needed else n for i, n in enumerate(names)]
            pairs = zip(given.kwonlyargs, given.kw_defaults, strict=True)
            return some + [a.arg if default is None else f"{a.arg}=" for a, default in pairs]
    fields = [s for s in classes[name].body if isinstance(s, ast.AnnAssign)]
    return [ast.unparse(f.target) + ("" if f.value is None else "=") for f in fields]


def _methods(found: ast.ClassDef) -> list[str]:
    """The methods that subclasses override."""
    functions = [s for s in found.body if isinstance(s, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [f.name for f in functions if "final" not in map(ast.unparse, f.decorator_list)]


def write(releases: dict[str, Release]) -> None:
    """Replaces the data, a line an entry."""
    texts = []
    for version, release in releases.items():
        parts = [
            f'  "{part}": {{\n'
            + ",\n".join(
                f"   {json.dumps(key)}: {json.dumps(found)}" for key, found in entries.items()
            )
            + "\n  }"
            for part, entries in vars(release).items()
        ]
        texts.append(f' "{version}": {{\n' + ",\n".join(parts) + "\n }")
    FILE.write_text("{\n" + ",\n".join(texts) + "\n}\n", encoding="utf-8")


def main(folders: list[str]) -> None:
    if not folders:
        sys.exit(__doc__)
    found = {version_of(Path(folder)): read(Path(folder)) for folder in folders}
    releases = (recorded() if FILE.exists() else {}) | found
    write(dict(sorted(releases.items(), key=lambda item: [int(n) for n in item[0].split(".")])))


if __name__ == "__main__":
    main(sys.argv[1:])
