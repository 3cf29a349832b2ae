"""Set up this folder and run it. Needs nothing but Python 3.10 or newer.

    python run.py picture [OPTIONS]    make a picture with a shipped model
    python run.py test [OPTIONS]       run the tests

The first run makes a virtual environment in .venv and installs PyTorch and the requirements into it. Later runs start
at once. Options of `picture` go to `python -m shortcut generate`, options of `test` to pytest.

    --torch REQUIREMENT    the PyTorch to install, such as torch==2.13.0; also as environment variable MIGM_TORCH.
                           Default: what is installed already, else the newest build for this computer
    MIGM_VENV              environment variable: another folder for the virtual environment
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
# pip's default index has no CPU build for Linux and no CUDA build for Windows.
# Source: https://pytorch.org/get-started/locally/
TORCH_INDEX = "https://download.pytorch.org/whl/"
CPU, CUDA = "cpu", "cu130"
REQUIREMENTS = {
    "picture": ["requirements.txt"],
    "test": ["requirements.txt", "experiments/requirements.txt", "requirements-test.txt"],
}
PICTURE = ["--class", "night snow", "--steps", "32", "--full-steps", "8", "--seed", "7"]
TESTS = ["experiments/tests", "tests"]
NO_TESTS = 5  # pytest's exit status if no test has the name that was asked for
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
MAX_PROCESSES = 4  # each of the tests' processes imports PyTorch


class SetupError(Exception):
    """An error whose text tells the user what to do."""


def main(arguments: list[str]) -> int:
    """Set up and run one command. Return its exit status."""
    arguments, torch = split_torch(arguments)
    if not arguments or arguments[0] not in REQUIREMENTS:
        print(__doc__, file=sys.stdout if arguments[:1] in (["-h"], ["--help"]) else sys.stderr)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    command, options = arguments[0], arguments[1:]
    try:
        check_python()
        if command == "test" and not (ROOT / "tests").is_dir():
            raise SetupError("the tests are not in this copy. Clone the repository to run them.")
        python = set_up(venv_folder(), REQUIREMENTS[command], torch)
        return picture(python, options) if command == "picture" else test(python, options)
    except SetupError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("run.py: interrupted. Run the same command again to go on.", file=sys.stderr)
        return 130


def split_torch(arguments: list[str]) -> tuple[list[str], str | None]:
    """Return the arguments without --torch REQUIREMENT, and the requirement."""
    torch = os.environ.get("MIGM_TORCH") or None
    if "--torch" in arguments:
        at = arguments.index("--torch")
        torch = (arguments[at + 1 : at + 2] or [None])[0] or torch
        arguments = arguments[:at] + arguments[at + 2 :]
    return arguments, torch


def check_python() -> None:
    """Raise SetupError if this Python is too old or cannot make a virtual environment."""
    if sys.version_info < (3, 10):  # noqa: UP036
        raise SetupError(
            f"Python must be 3.10 or newer, got {platform.python_version()}. "
            "Install a newer one from https://www.python.org/downloads/."
        )
    if not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise SetupError(
            "this Python has no module ensurepip, so it cannot make a virtual environment. "
            f"On Debian or Ubuntu: sudo apt install python{version}-venv"
        )


def venv_folder() -> Path:
    """Return the folder of the virtual environment."""
    return Path(os.environ.get("MIGM_VENV") or ROOT / ".venv").absolute()


def set_up(folder: Path, requirements: list[str], torch: str | None) -> Path:
    """Make the virtual environment and install what is missing. Return its Python."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = folder / "migm-shortcut-setup.json"
    wanted = {name: digest(ROOT / name) for name in requirements if (ROOT / name).exists()}
    if torch is not None:
        wanted["torch"] = torch
    done = read_stamp(stamp) if python.exists() else {}
    if wanted.items() <= done.items():
        return python
    if not python.exists():
        print(f"Making a virtual environment in {folder} (once) ...", flush=True)
        if run([sys.executable, "-m", "venv", str(folder)]) != 0:
            raise SetupError(
                f"no virtual environment could be made in {folder}: see the message above. "
                "If the folder is there, delete it and try again."
            )
    # A set-up that was interrupted may have left an environment without pip.
    if output([python, "-m", "pip", "--version"]) is None:
        run([python, "-m", "ensurepip", "--upgrade"])
    install_torch(python, torch)
    missing = [name for name in wanted if name != "torch" and wanted[name] != done.get(name)]
    for name in missing:
        pip_install(python, ["-r", str(ROOT / name)], name)
    stamp.write_text(json.dumps({**done, **wanted}, indent=1), encoding="utf-8")
    return python


def install_torch(python: Path, requirement: str | None) -> None:
    """Install PyTorch: the one required, else the one that is there, else the newest for this computer."""
    if requirement is not None:
        pip_install(python, [requirement], requirement)
        return
    if (
        output([python, "-c", "from importlib.metadata import version; version('torch')"])
        is not None
    ):
        return
    build = None if has_own_index(python) else torch_build(platform.system(), has_nvidia())
    if build is not None:
        try:
            patience = ["--retries", "1", "--timeout", "30"]
            pip_install(python, ["torch", "--index-url", TORCH_INDEX + build, *patience], "torch")
            return
        except SetupError:
            print(f"{TORCH_INDEX}{build} did not answer; trying pip's default.", flush=True)
    pip_install(python, ["torch"], "torch")


def torch_build(system: str, nvidia: bool) -> str | None:
    """Return the PyTorch build to ask for, or None where pip's default index has the right one."""
    if system == "Linux":
        return None if nvidia else CPU
    if system == "Windows":
        return CUDA if nvidia else None
    return None


def has_nvidia() -> bool:
    """Check for an NVIDIA GPU with a working driver."""
    program = shutil.which("nvidia-smi")
    return program is not None and "GPU" in (output([program, "-L"]) or "")


def has_own_index(python: Path) -> bool:
    """Check if pip is set to use an index or folder of the user's, which then decides about PyTorch."""
    lines = (output([python, "-m", "pip", "config", "list"]) or "").splitlines()
    names = {line.partition("=")[0].rpartition(".")[2].replace("_", "-") for line in lines}
    return not names.isdisjoint({"index-url", "extra-index-url", "find-links", "no-index"})


def pip_install(python: Path, arguments: list[str], what: str) -> None:
    """Install by pip. Raise SetupError if pip fails."""
    print(f"Installing {what} ...", flush=True)
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", *quiet]
    if run([*pip, *arguments]) != 0:
        raise SetupError(
            f"pip could not install {what}: see its message above. Check the network and the free disk space "
            "(about 2 GB, 6 GB with CUDA), then run the same command again."
        )


def picture(python: Path, options: list[str]) -> int:
    """Make a picture with the shipped model, or with the options of `python -m shortcut generate`."""
    options = options or PICTURE
    out = None
    if not any(o.split("=")[0] in ("--out", "--prompts", "-h", "--help") for o in options):
        out = ROOT / "output" / "picture.png"
        out.parent.mkdir(exist_ok=True)
        options = [*options, "--out", str(out)]
    # By PYTHONPATH rather than the current folder, from which paths in the options are counted.
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    status = run([python, "-m", "shortcut", "generate", *options], env={"PYTHONPATH": path})
    if status == 0 and out is not None:
        print(f"The picture is in {out.parent}.", flush=True)
    return status


def test(python: Path, options: list[str]) -> int:
    """Run all tests, or those that the options name, with pytest."""
    pytest = [python, "-m", "pytest"]
    if any(not o.startswith("-") and (ROOT / o.split("::")[0]).exists() for o in options):
        return run([*pytest, *options], cwd=ROOT)
    if sys.stdout.isatty():
        pytest.append("--color=yes")
    processes = ["-n", str(min(MAX_PROCESSES, num_cores())), "--dist", "loadfile"]
    # Each folder in a run of its own: they import the pack by different names.
    ends = {
        name: run_showing_end([*pytest, *processes, *options, name], cwd=ROOT)
        for name in TESTS
        if (ROOT / name).is_dir()
    }
    print("\n" + "\n".join(f"{name}: {end}" for name, (_, end) in ends.items()), flush=True)
    failed = [status for status, _ in ends.values() if status not in (0, NO_TESTS)]
    return failed[0] if failed else min(status for status, _ in ends.values())


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run(command: list, cwd: Path | None = None, env: dict[str, str] | None = None) -> int:
    """Run a program to its end. Return its exit status, also after Ctrl-C, which the program gets too."""
    process = subprocess.Popen(list(map(str, command)), cwd=cwd, env={**os.environ, **(env or {})})
    try:
        return process.wait()
    except KeyboardInterrupt:
        try:
            process.wait()
        except KeyboardInterrupt:
            process.kill()
        raise


def run_showing_end(command: list, cwd: Path) -> tuple[int, str]:
    """Run a program, show what it prints at once, and return its exit status and its last line."""
    tail = b""
    process = subprocess.Popen(list(map(str, command)), cwd=cwd, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        while part := os.read(process.stdout.fileno(), 65536):
            sys.stdout.buffer.write(part)
            sys.stdout.flush()
            tail = (tail + part)[-4096:]
        status = process.wait()
    except KeyboardInterrupt:
        sys.stdout.buffer.write(process.stdout.read())  # what pytest says about the interrupt
        sys.stdout.flush()
        process.wait()
        raise
    lines = COLOUR.sub("", tail.decode(errors="replace")).splitlines()
    return status, next((line.strip(" =") for line in reversed(lines) if line.strip()), "")


def output(command: list) -> str | None:
    """Return what a program prints, or None if it fails."""
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def digest(path: Path) -> str:
    """Return a hash of a file's text that does not depend on its line ends."""
    return hashlib.sha256(path.read_text(encoding="utf-8").encode()).hexdigest()


def read_stamp(path: Path) -> dict[str, str]:
    """Return what an earlier run installed; empty if there was none or its stamp cannot be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
