"""The nodes use only what ComfyUI 0.20.1, 0.28.0 and 0.33.0 all take in schemas, and the stand-ins take no more.

Run with COMFY_DIR, they check the record against that release too (see comfy_stubs.py).
"""

# ruff: noqa: E402 - ComfyUI, or what stands in for it, must be importable first

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import comfy_schema
import comfy_stubs
import pytest
from comfy_stubs import needs_comfy

comfy_stubs.install()
import comfy_api.latest
import folder_paths
from shortcut_pack import nodes

HOSTS = {"all releases": comfy_stubs.io(), "installed": comfy_api.latest.io}


@pytest.fixture(autouse=True)
def no_files(monkeypatch):
    monkeypatch.setattr(folder_paths, "get_filename_list", lambda category: [])


@pytest.fixture
def on_all_releases(monkeypatch):
    """Nodes make their schemas of what every recorded release has, also where ComfyUI is the real one."""
    for module in [m for name, m in sys.modules.items() if name.startswith(nodes.__name__ + ".")]:
        for name, value in list(vars(module).items()):
            if value is comfy_api.latest.io:
                monkeypatch.setattr(module, name, HOSTS["all releases"])
            elif isinstance(getattr(value, "io_type", None), str):
                monkeypatch.setattr(module, name, HOSTS["all releases"].Custom(value.io_type))


def test_three_releases_are_recorded():
    assert list(comfy_schema.recorded()) == ["0.20.1", "0.28.0", "0.33.0"]


@pytest.mark.parametrize("node", nodes.NODES)
def test_schemas_take_arguments_that_every_release_knows(node, on_all_releases):
    assert isinstance(node.define_schema(), comfy_stubs.Schema)


@pytest.mark.parametrize("node", nodes.NODES)
def test_execute_takes_each_input_by_its_id(node):
    taken = inspect.signature(node.execute).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    for item in node.define_schema().inputs:
        assert item.id in taken or takes_any, item.id
        if item.optional and item.id in taken:
            assert taken[item.id].default is not inspect.Parameter.empty, item.id


def test_no_method_has_a_name_that_comfyui_never_calls():
    known = comfy_schema.common().methods
    for base, classes in {
        "ComfyNode": nodes.NODES,
        "ComfyExtension": [nodes.ShortcutExtension],
    }.items():
        for found in classes:
            assert {name for name in vars(found) if name.islower() and name[0] != "_"} <= set(
                known[base]
            )


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        ("Schema", {"node_id": "Node", "search_alias": ["word"]}),
        ("Schema", {"display_name": "Node"}),
        ("Model.Input", {"id": "model", "tool_tip": "From Load MIGM."}),
        ("Model.Input", {"tooltip": "From Load MIGM."}),
        ("Model.Input", {"id": "model", "default": 1}),
        ("Int.Input", {"id": "steps", "minimum": 1}),
        ("Float.Input", {"id": "cfg", "control_after_generate": True}),
        ("Combo.Input", {"id": "preset", "choices": ["fast"]}),
        ("String.Input", {"id": "text", "multi_line": True}),
        ("Image.Output", {"id": "image", "optional": True}),
        ("NodeOutput", {"images": []}),
    ],
)
def test_a_misspelt_or_missing_argument_is_refused(host, path, arguments):
    constructor = HOSTS[host]
    for name in path.split("."):
        constructor = getattr(constructor, name)
    with pytest.raises(TypeError):
        constructor(**arguments)


def test_the_record_is_read_from_the_source_of_a_release(tmp_path):
    """The forms in which ComfyUI states parameters: its own, a base's, a dataclass's, none."""
    source = tmp_path / "comfy_api" / "latest"
    source.mkdir(parents=True)
    (tmp_path / "comfyui_version.py").write_text('__version__ = "9.9.9"\n')
    (source / "_io.py").write_text(SOURCE)
    (source / "__init__.py").write_text(
        "class ComfyExtension(ABC):\n    async def on_load(self): ...\nclass Input: ...\n"
    )
    assert comfy_schema.version_of(tmp_path) == "9.9.9"
    assert vars(comfy_schema.read(tmp_path)) == {
        "types": {
            "Int": {"io_type": "INT", "Input": "Int.Input", "Output": "Output"},
            "Image": {"io_type": "IMAGE", "Input": "Input", "Output": "Output"},
            "Choice": {"io_type": "CHOICE", "Input": "Int.Input"},
        },
        "constructors": {
            "Input": ["id", "tooltip="],
            "Int.Input": ["id", "min=", "max"],
            "NodeOutput": ["ui="],
            "Output": ["id="],
            "Schema": ["node_id", "inputs="],
        },
        "methods": {"ComfyNode": ["execute"], "ComfyExtension": ["on_load"]},
    }


SOURCE = """
class _ComfyType(ABC): ...
class Input(Base):
    def __init__(self, id: str, tooltip: str = None): ...
class Output(Base):
    def __init__(self, id: str = None): ...
class ComfyTypeI(_ComfyType):
    class Input(Input): ...
class ComfyTypeIO(ComfyTypeI):
    class Output(Output): ...
@comfytype(io_type="INT")
class Int(ComfyTypeIO):
    class Input(Input):
        def __init__(self, id, min=None, *, max): ...
@comfytype(io_type="IMAGE")
class Image: ...
@comfytype(io_type="CHOICE")
class Choice(ComfyTypeI):
    class Input(Int.Input): ...
@comfytype(io_type="HIDDEN")
class NotPublic(ComfyTypeIO): ...
@dataclass
class Schema:
    node_id: str
    inputs: list = field(default_factory=list)
class NodeOutput(Base):
    def __init__(self, *args, ui=None): ...
class ComfyNode(Base):
    @classmethod
    def execute(cls): ...
    @final
    @classmethod
    def GET_BASE_CLASS(cls): ...
__all__ = ["Input", "Int", "Image", "Choice", "Schema", "NodeOutput", "ComfyNode"]
"""


@needs_comfy
def test_the_record_is_what_the_installed_release_takes():
    folder = Path(comfy_stubs.COMFY_DIR)
    found, io = comfy_schema.read(folder), comfy_api.latest.io
    recorded = comfy_schema.recorded().get(comfy_schema.version_of(folder))
    assert recorded is None or found == recorded
    for name, parameters in found.constructors.items():
        constructor = io
        for part in name.split("."):
            constructor = getattr(constructor, part)
        assert _parameters(constructor) == parameters, name
    for name, entry in found.types.items():
        for socket in comfy_schema.SOCKETS:
            constructor = getattr(getattr(io, name), socket, None)
            assert (socket in entry) == (constructor is not None), (name, socket)
            if constructor is not None:
                assert _parameters(constructor) == found.constructors[entry[socket]], (name, socket)


def _parameters(constructor):
    """As the record writes them."""
    named = [
        parameter
        for parameter in inspect.signature(constructor).parameters.values()
        if parameter.kind is not parameter.VAR_POSITIONAL
    ]
    return [p.name if p.default is p.empty else f"{p.name}=" for p in named]
