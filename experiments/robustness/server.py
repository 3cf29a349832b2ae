"""Start a ComfyUI server that has this pack, queue prompts and watch what it takes. Linux only."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PACK = "migm-shortcut"  # the pack's folder in custom_nodes
START_SECONDS = 180.0
SUCCESS, ERROR, INTERRUPTED = "success", "error", "interrupted"


class ServerError(RuntimeError):
    """The server ended, does not start or does not answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How a prompt ended."""

    end: str  # SUCCESS, ERROR or INTERRUPTED
    exception: str = ""  # its type
    message: str = ""
    outputs: Mapping[str, Any] | None = None


@dataclass(slots=True)
class Server:
    """A server that runs."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def ask(self, path: str, body: Any = None) -> Any:
        """Send GET, or POST with a body; return the JSON that comes back, None if there is none.

        Raises:
            ServerError: no answer.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                content = answer.read()
        except urllib.error.HTTPError as error:
            content = error.read()
        except OSError as error:
            self.check_alive()
            raise ServerError(f"no answer to {path}: {error}") from error
        try:
            return json.loads(content)
        except ValueError:
            return None

    def queue(
        self, graph: Mapping[str, Any], client: str, extra: Mapping[str, Any] | None = None
    ) -> str | Answer:
        """Queue a prompt. Return its id, or how it was refused.

        Args:
            extra: what ComfyUI calls `extra_data`.
        """
        body = {"prompt": graph, "client_id": client, "extra_data": extra or {}}
        answer = self.ask("/prompt", body)
        if "prompt_id" in answer and not answer.get("node_errors"):
            return answer["prompt_id"]
        return Answer(ERROR, "refused", json.dumps(answer)[:1000])

    def wait(self, prompt: str, seconds: float) -> Answer:
        """Wait for the end of a prompt.

        Raises:
            ServerError: it does not end.
        """
        end, pause = time.monotonic() + seconds, 0.02
        while time.monotonic() < end:
            if found := self.ask(f"/history/{prompt}"):
                return _answer(found[prompt])
            self.check_alive()
            time.sleep(pause)
            pause = min(pause * 1.5, 0.3)
        raise ServerError(f"no end of a prompt after {seconds:.0f} s")

    def wait_running(self, prompt: str, seconds: float) -> None:
        """Wait until a prompt runs, or has ended already."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            waiting = self.ask("/queue")["queue_pending"]
            if all(item[1] != prompt for item in waiting):
                return
            time.sleep(0.05)

    def pictures(self, answer: Answer) -> list[tuple[tuple[int, int], bytes]]:
        """Return size and pixels of what a prompt saved."""
        found = []
        for output in (answer.outputs or {}).values():
            for file in output.get("images", ()):
                address = f"{self.url}/view?{urllib.parse.urlencode(file)}"
                with urllib.request.urlopen(address, timeout=60) as content:
                    picture = Image.open(io.BytesIO(content.read())).convert("RGB")
                found.append((picture.size, picture.tobytes()))
        return found

    def free(self) -> None:
        """Let the server forget models, cached results and the history."""
        self.ask("/free", {"unload_models": True, "free_memory": True})
        self.ask("/history", {"clear": True})

    def memory(self) -> int:
        """Return the bytes of memory that the process has now."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def processor_seconds(self) -> float:
        """Return the seconds of the processor that the process has taken, in all its threads."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        """Return how many files and connections the process has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def check_alive(self) -> None:
        """Raise ServerError with the end of the log if the process ended."""
        if self.process.poll() is not None:
            end = self.log.read_text(errors="replace")[-3000:]
            raise ServerError(f"the server ended with status {self.process.returncode}:\n{end}")


def _answer(entry: Mapping[str, Any]) -> Answer:
    """Return what an entry of the history says."""
    status = entry["status"]
    for kind, data in status["messages"]:
        if kind == "execution_interrupted":
            return Answer(INTERRUPTED)
        if kind == "execution_error":
            return Answer(ERROR, data["exception_type"], data["exception_message"])
    end = SUCCESS if status["status_str"] == "success" else ERROR
    return Answer(end, outputs=entry["outputs"])


@contextmanager
def serving(comfy: Path, python: str, log: Path) -> Iterator[Server]:
    """Run ComfyUI from the folder `comfy` over an empty base folder with this pack alone.

    Args:
        python: interpreter that has what ComfyUI needs.
        log: file for what the server says.

    Raises:
        ServerError: it does not start, or the pack does not load.
    """
    base = Path(tempfile.mkdtemp(prefix="soak-"))
    for name in ("custom_nodes", "input", "output", "temp", "models", "user/default"):
        (base / name).mkdir(parents=True)
    (base / "custom_nodes" / PACK).symlink_to(ROOT, target_is_directory=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        python,
        str(comfy.resolve() / "main.py"),
        "--listen",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    command += ["--base-directory", str(base), "--database-url", "sqlite:///:memory:", "--cpu"]
    command += ["--disable-auto-launch", "--disable-api-nodes"]
    offline = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    process = None
    try:
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=base,
                env=os.environ | offline,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        server = Server(process, f"http://127.0.0.1:{port}", log)
        _wait_ready(server)
        yield server
    finally:
        if process is not None:
            _stop(process)
        shutil.rmtree(base, ignore_errors=True)  # the link to the pack is removed, not followed


def _wait_ready(server: Server) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        server.check_alive()
        try:
            known = server.ask("/object_info/ShortcutMaskedSampler")
        except ServerError:
            server.check_alive()
            time.sleep(0.5)
            continue
        if known:
            return
        raise ServerError(f"ComfyUI runs, but not with this pack: see {server.log}")
    raise ServerError(f"ComfyUI does not answer: see {server.log}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
