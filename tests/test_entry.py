"""The pack loads as ComfyUI loads it, under any folder name, and leaves the host's names alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
# Source: ComfyUI nodes.py load_custom_node: the module is named after its path, with dots replaced.
LOADER = """
import asyncio, importlib.util, json, logging, sys, types
from pathlib import Path

folder, tests = Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, tests)
alias = sys.modules["shortcut_pack"] = types.ModuleType("shortcut_pack")
alias.__path__ = [str(folder)]
import comfy_stubs
comfy_stubs.install()
sys.path.remove(tests)
for name in [name for name in sys.modules if name.startswith("shortcut_pack")]:
    del sys.modules[name]
host_nodes = sys.modules["nodes"] = types.ModuleType("nodes")
search_path, handlers = list(sys.path), list(logging.getLogger().handlers)

name = str(folder).replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
at_import = sorted(n for n in sys.modules if n.startswith(name + "."))

async def load():
    extension = await module.comfy_entrypoint()
    await extension.on_load()
    return await extension.get_node_list()

schemas = [node.define_schema() for node in asyncio.run(load())]
files = [getattr(m, "__file__", None) for m in list(sys.modules.values())]
ours = [f for f in files if f and Path(f).is_relative_to(folder)]
print(json.dumps({
    "ids": [schema.node_id for schema in schemas],
    "at_import": at_import,
    "loaded_twice": sorted({f for f in ours if ours.count(f) > 1}),
    "host_unchanged": sys.modules["nodes"] is host_nodes and sys.path == search_path
        and logging.getLogger().handlers == handlers,
    "web": (folder / module.WEB_DIRECTORY / "docs").is_dir(),
}))
"""


@pytest.mark.parametrize("folder_name", ["migm-shortcut", "my pack v1.2", "nodes"])
def test_loads_under_any_folder_name(folder_name, tmp_path):
    folder = tmp_path / "custom_nodes" / folder_name
    folder.parent.mkdir()
    folder.symlink_to(TESTS.parent, target_is_directory=True)
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(folder), str(TESTS)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env={"PATH": "", "TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ids"] == [
        "ShortcutLoadMIGM",
        "ShortcutLoadHead",
        "ShortcutAccelerator",
        "ShortcutClassCondition",
        "ShortcutTextCondition",
        "ShortcutSampler",
        "ShortcutMaskedSampler",
        "ShortcutDescribeImage",
        "ShortcutReasonedEdit",
        "ShortcutTrainHead",
        "ShortcutSaveHead",
        "ShortcutSpeedQuality",
    ]
    assert found["at_import"] == [], "importing the pack must not import its nodes"
    assert found["loaded_twice"] == []
    assert found["host_unchanged"] and found["web"]


def test_a_failure_to_load_is_logged_with_its_traceback(tmp_path):
    broken = "sys.modules['comfy_api'] = None\n"
    call = "import asyncio\nasyncio.run(module.comfy_entrypoint())\n"
    load = LOADER[LOADER.index("name = str(folder)") : LOADER.index("at_import")]
    start = "import importlib.util, sys\nfrom pathlib import Path\nfolder = Path(sys.argv[1])\n"
    done = subprocess.run(
        [sys.executable, "-c", start + broken + load + call, str(TESTS.parent)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert "The nodes of" in done.stderr and "comfy_api" in done.stderr
