"""run.py sets up once, chooses the right PyTorch and says what to do when it cannot."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("run_under_test", ROOT / "run.py")
assert SPEC is not None and SPEC.loader is not None
run = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(run)
QUIET = ("--quiet", "--disable-pip-version-check")


class Machine:
    """Stands in for the programs that run.py starts, and notes them."""

    def __init__(self, config: str = "", has_torch: bool = False, failing: str = ""):
        self.config, self.has_torch, self.failing = config, has_torch, failing
        self.commands: list[list[str]] = []

    def run(self, command, cwd=None, env=None) -> int:
        command = [str(part) for part in command]
        self.commands.append(command)
        if command[1:3] == ["-m", "venv"]:
            python = Path(command[3], "bin" if sys.platform != "win32" else "Scripts")
            python.mkdir(parents=True)
            (python / ("python" if sys.platform != "win32" else "python.exe")).touch()
        return int(bool(self.failing) and self.failing in command)

    def run_showing_end(self, command, cwd) -> tuple[int, str]:
        status = self.run(command, cwd)
        return status, "1 failed in 2s" if status else "3 passed in 4s"

    def output(self, command) -> str | None:
        command = [str(part) for part in command]
        if "config" in command:
            return self.config
        if command[1] == "-c":
            return "" if self.has_torch else None
        return "pip"

    @property
    def installed(self) -> list[list[str]]:
        """The arguments of each `pip install`."""
        return [
            [part for part in command[4:] if part not in QUIET]
            for command in self.commands
            if command[1:4] == ["-m", "pip", "install"]
        ]


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Make a machine with the given properties, on which run.py works in a folder of its own."""

    def make(system: str = "Linux", nvidia: bool = False, **properties) -> Machine:
        machine = Machine(**properties)
        monkeypatch.setattr(run, "run", machine.run)
        monkeypatch.setattr(run, "run_showing_end", machine.run_showing_end)
        monkeypatch.setattr(run, "output", machine.output)
        monkeypatch.setattr(run, "has_nvidia", lambda: nvidia)
        monkeypatch.setattr(run.platform, "system", lambda: system)
        return machine

    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.delenv("MIGM_TORCH", raising=False)
    monkeypatch.delenv("MIGM_VENV", raising=False)
    for name in ("requirements.txt", "requirements-test.txt"):
        (tmp_path / name).write_text(f"{name}-content\n")
    (tmp_path / "tests").mkdir()
    return make


CPU = ["--index-url", "https://download.pytorch.org/whl/cpu", "--retries", "1", "--timeout", "30"]
CUDA = [part.replace("cpu", "cu130") for part in CPU]


@pytest.mark.parametrize(
    ("system", "nvidia", "options"),
    [
        ("Linux", False, CPU),
        ("Linux", True, []),
        ("Windows", False, []),
        ("Windows", True, CUDA),
        ("Darwin", False, []),
    ],
)
def test_pytorch_fits_the_computer(machine, system, nvidia, options):
    computer = machine(system, nvidia)
    assert run.main(["picture"]) == 0
    assert computer.installed[0] == ["torch", *options]


def test_an_index_of_the_user_decides(machine):
    computer = machine(config=":env:.index-url='https://example.org/simple'\n")
    assert run.main(["picture"]) == 0
    assert computer.installed[0] == ["torch"]


def test_an_index_that_does_not_answer_is_replaced_by_the_default(machine):
    computer = machine(failing="--index-url")
    assert run.main(["picture"]) == 0
    assert computer.installed[:2] == [["torch", *CPU], ["torch"]]


def test_pytorch_that_is_there_stays(machine):
    computer = machine(has_torch=True)
    assert run.main(["picture"]) == 0
    assert all("torch" not in arguments for arguments in computer.installed)


@pytest.mark.parametrize("by", ["option", "environment"])
def test_a_given_pytorch_is_installed(machine, monkeypatch, by):
    computer = machine(has_torch=True)
    if by == "environment":
        monkeypatch.setenv("MIGM_TORCH", "torch==2.13.0")
    assert run.main(["picture", *(["--torch", "torch==2.13.0"] if by == "option" else [])]) == 0
    assert computer.installed[0] == ["torch==2.13.0"]
    assert "--torch" not in computer.commands[-1]


def test_the_second_run_starts_at_once(machine, tmp_path):
    computer = machine()
    assert run.main(["picture"]) == 0
    first = len(computer.commands)
    assert run.main(["picture"]) == 0
    assert len(computer.commands) == first + 1, "only the picture itself"
    (tmp_path / "requirements.txt").write_text("changed\n")
    computer.has_torch = True
    assert run.main(["picture"]) == 0
    assert computer.installed[-1] == ["-r", str(tmp_path / "requirements.txt")]


def test_tests_install_only_what_the_picture_did_not(machine, tmp_path):
    computer = machine()
    assert run.main(["picture"]) == 0
    computer.has_torch, before = True, len(computer.installed)
    assert run.main(["test", "-x"]) == 0
    assert computer.installed[before:] == [["-r", str(tmp_path / "requirements-test.txt")]]
    assert computer.commands[-1][1:] == [
        *("-m", "pytest", "-n", str(min(4, run.num_cores())), "--dist", "loadfile", "-x", "tests")
    ]


@pytest.mark.parametrize("failing", ["", "tests", "experiments/tests"])
def test_both_folders_of_tests_run_and_their_last_lines_close_the_output(
    machine, tmp_path, capsys, failing
):
    (tmp_path / "experiments" / "tests").mkdir(parents=True)
    computer = machine()
    assert run.main(["picture"]) == 0
    capsys.readouterr()
    computer.failing = failing
    assert run.main(["test"]) == int(bool(failing))
    assert [command[-1] for command in computer.commands[-2:]] == ["experiments/tests", "tests"]
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"{name}: {'1 failed in 2s' if name == failing else '3 passed in 4s'}"
        for name in ("experiments/tests", "tests")
    ]


def test_the_last_line_of_a_program_is_returned(capfd, tmp_path):
    program = "import sys; print('dots'); print('== 3 passed in 4s ==\\n'); sys.exit(3)"
    status, end = run.run_showing_end([sys.executable, "-c", program], tmp_path)
    assert (status, end) == (3, "3 passed in 4s")


def test_named_tests_run_alone(machine):
    computer = machine()
    assert run.main(["test", "tests::test_one", "-s"]) == 0
    assert computer.commands[-1][1:] == ["-m", "pytest", "tests::test_one", "-s"]


def test_options_of_a_picture_are_forwarded(machine, tmp_path):
    computer = machine()
    assert run.main(["picture", "--class", "3"]) == 0
    out = ["--out", str(tmp_path / "output" / "picture.png")]
    assert computer.commands[-1][4:] == ["--class", "3", *out]
    assert run.main(["picture", "--prompt", "a fox", "--out=fox.png"]) == 0
    assert computer.commands[-1][4:] == ["--prompt", "a fox", "--out=fox.png"]


def test_a_failing_pip_is_reported_and_tried_again(machine, capsys, tmp_path):
    computer = machine(failing="-r")
    assert run.main(["picture"]) == 1
    assert "pip could not install requirements.txt" in capsys.readouterr().err
    computer.failing = ""
    assert run.main(["picture"]) == 0
    assert computer.installed[-1] == ["-r", str(tmp_path / "requirements.txt")]


def test_a_python_without_ensurepip_is_told_what_to_install(machine, monkeypatch, capsys):
    machine()
    find = run.importlib.util.find_spec
    monkeypatch.setattr(
        run.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else find(name)
    )
    assert run.main(["picture"]) == 1
    assert "sudo apt install python3" in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(machine, monkeypatch, capsys):
    machine()

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run", interrupted)
    assert run.main(["picture"]) == 130
    assert "Run the same command again" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["draw"], 2), (["--help"], 0)])
def test_help_names_both_commands(arguments, status, capsys):
    assert run.main(arguments) == status
    printed = capsys.readouterr()
    assert "run.py picture" in (printed.out or printed.err)
