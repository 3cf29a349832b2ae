"""The example of a dispatcher in docs/several_devices.md, run against two servers."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "several_devices.md"


class Comfy(ThreadingHTTPServer):
    """Answers as ComfyUI does; a prompt is done when it is asked for the second time."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.prompts: dict[str, Any] = {}
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Comfy

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = f"{self.server.server_port}-{len(self.server.prompts)}"
        self.server.prompts[name] = body["prompt"]
        self.answer({"prompt_id": name})

    def do_GET(self) -> None:
        url = urlparse(self.path)
        asked, prompts = self.server.asked, self.server.prompts
        if url.path == "/queue":
            running = [name for name in prompts if name not in asked]
            return self.answer({"queue_running": running[:1], "queue_pending": running[1:]})
        if url.path == "/view":
            return self.answer(f"picture {parse_qs(url.query)['filename'][0]}")
        name = url.path.rpartition("/")[2]
        asked.append(name)
        if asked.count(name) < 2:
            return self.answer({})
        failed = prompts[name].get("fails", False)
        status = {"status_str": "error" if failed else "success", "messages": [["why", {}]]}
        file = {"filename": f"{name}.png", "subfolder": "", "type": "output"}
        return self.answer({name: {"status": status, "outputs": {"9": {"images": [file]}}}})

    def answer(self, content: object) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def servers() -> Iterator[list[Comfy]]:
    found = [Comfy(), Comfy()]
    for server in found:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield found
    for server in found:
        server.shutdown()
        server.server_close()


def test_the_dispatcher_shares_prompts_and_brings_their_pictures(servers: list[Comfy]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    example: dict[str, Any] = {}
    exec(code, example)
    graphs = [{"number": number} for number in range(4)]
    sent = example["dispatch"]([server.url for server in servers], graphs)
    assert [len(server.prompts) for server in servers] == [2, 2], "each to the shortest queue"
    for place, prompt_id in sent:
        assert example["pictures"](place, prompt_id) == [f'"picture {prompt_id}.png"'.encode()]
    ((place, prompt_id),) = example["dispatch"]([servers[0].url], [{"fails": True}])
    with pytest.raises(RuntimeError, match="why"):
        example["pictures"](place, prompt_id)
