"""The command `download`, with a hub that is not there."""

from __future__ import annotations

import fnmatch
import hashlib
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from shortcut_pack.shortcut.__main__ import main
from shortcut_pack.shortcut.cli import download
from shortcut_pack.shortcut.cli.download import downloads

LUMINA = {
    "README.md": 50,
    "config.json": 10,
    "tokenizer.json": 30,
    "tokenizer_config.json": 5,
    "model.safetensors.index.json": 7,
    "model-00001-of-00002.safetensors": 5000,
    "model-00002-of-00002.safetensors": 4000,
    "modeling_llada.py": 99,
    "vqvae/config.json": 3,
    "vqvae/diffusion_pytorch_model.safetensors": 600,
}
MASKGIT = {
    "pretrained_maskgit/MaskGIT/MaskGIT_ImageNet_512.pth": 2000,
    "pretrained_maskgit/MaskGIT/MaskGIT_ImageNet_256.pth": 1900,
    "pretrained_maskgit/VQGAN/last.ckpt": 900,
    "pretrained_maskgit/VQGAN/model.yaml": 6,
}
HEADS = {
    "DiMOO-Shortcut/dimoo-shortcut.pth": 800,
    "MaskGIT-Shortcut/maskgit-shortcut.pth": 40,
}


@dataclass
class Hub:
    """What `download` uses of huggingface_hub."""

    repositories: dict[str, dict[str, int]]
    listed: dict[str, dict[str, Any]] = field(default_factory=dict)  # hashes of files
    sha: str | None = "c0ffee"
    fetched: list[str] = field(default_factory=list)
    fails_at: str = ""
    failure: BaseException = field(default_factory=lambda: OSError("cable pulled out\nand more"))

    def HfApi(self) -> Hub:
        return self

    def model_info(self, repository: str, *, files_metadata: bool) -> Any:
        assert files_metadata
        if repository not in self.repositories:
            raise self.failure
        files = self.repositories[repository].items()
        siblings = [
            SimpleNamespace(rfilename=name, size=size, **self.listed.get(name, {}))
            for name, size in files
        ]
        return SimpleNamespace(sha=self.sha, siblings=siblings)

    def snapshot_download(
        self, repository: str, *, revision: str, allow_patterns: list[str], local_dir: Path
    ) -> str:
        assert revision == "c0ffee"
        names = self.repositories[repository]
        for name in sorted({n for p in allow_patterns for n in fnmatch.filter(names, p)}):
            path, cache = Path(local_dir) / name, Path(local_dir) / ".cache" / "huggingface"
            path.parent.mkdir(parents=True, exist_ok=True)
            if name == self.fails_at:
                cache.mkdir(parents=True)
                (cache / "part.incomplete").write_bytes(b"x" * 1000)
                raise self.failure
            if not path.exists() or path.stat().st_size != names[name]:
                path.write_bytes(b"x" * names[name])
                self.fetched.append(name)
        return str(local_dir)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub(
        {
            "Alpha-VLLM/Lumina-DiMOO": LUMINA,
            "tyfeld/MMaDA-Parallel-A": LUMINA,
            "llvictorll/Maskgit-pytorch": MASKGIT,
            "Kaiwen-Zhu/MIGM-Shortcut": HEADS,
        }
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


def run(what: str, folder: Path, *more: str) -> int:
    return main(["download", what, "--models-dir", str(folder), *more])


def files_below(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("maskgit-512", ["migm/MaskGIT_ImageNet_512.pth", "migm/last.ckpt", "migm/model.yaml"]),
        ("maskgit-256", ["migm/MaskGIT_ImageNet_256.pth", "migm/last.ckpt", "migm/model.yaml"]),
        ("maskgit-head", ["migm_heads/maskgit-shortcut.pth"]),
        ("dimoo-head", ["migm_heads/dimoo-shortcut.pth"]),
        (
            "lumina-dimoo",
            [
                f"migm/Lumina-DiMOO/{name}"
                for name in sorted(LUMINA)
                if name not in ("README.md", "modeling_llada.py")
            ],
        ),
        (
            "mmada-parallel-a",
            [
                f"migm/MMaDA-Parallel-A/{name}"
                for name in sorted(LUMINA)
                if name != "modeling_llada.py"
            ],
        ),
    ],
)
def test_files_come_to_where_the_loaders_look(
    what: str, expected: list[str], hub: Hub, tmp_path: Path
) -> None:
    assert run(what, tmp_path, "--yes") == 0
    assert sorted(files_below(tmp_path)) == sorted(expected)
    folders = ("Lumina-DiMOO", "MMaDA-Parallel-A")
    sizes = {f"{folder}/{name}": size for folder in folders for name, size in LUMINA.items()}
    sizes |= {Path(name).name: size for name, size in (MASKGIT | HEADS).items()}
    for name, size in files_below(tmp_path).items():
        assert size == sizes[name.split("/", 1)[1]], name


def test_sizes_are_shown_and_a_no_fetches_nothing(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    asked = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "n")
    assert run("lumina-dimoo", tmp_path) == 1
    said = capsys.readouterr().out
    assert "from https://huggingface.co/Alpha-VLLM/Lumina-DiMOO" in said
    assert "5 kB" in said and "model-00001-of-00002.safetensors" in said
    assert asked == ["fetch 9.65 kB? [y/N] "]
    assert hub.fetched == [] and files_below(tmp_path) == {}
    monkeypatch.setattr("builtins.input", lambda question: "Yes ")
    assert run("lumina-dimoo", tmp_path) == 0
    assert len(hub.fetched) == 8


def test_without_anybody_to_ask_it_says_what_to_add(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def nobody(question: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", nobody)
    assert run("maskgit-head", tmp_path) == 1
    assert "Add --yes" in capsys.readouterr().err


def test_what_is_there_is_not_fetched_again(hub: Hub, tmp_path: Path, capsys: Any) -> None:
    assert run("maskgit-512", tmp_path, "--yes") == 0
    assert run("maskgit-256", tmp_path, "--yes") == 0
    assert sum(name.endswith("last.ckpt") for name in hub.fetched) == 1
    capsys.readouterr()
    assert run("maskgit-256", tmp_path) == 0
    assert "there already" in capsys.readouterr().out


def test_a_file_of_another_size_is_replaced_and_that_is_said(
    hub: Hub, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "migm_heads").mkdir()
    (tmp_path / "migm_heads" / "maskgit-shortcut.pth").write_bytes(b"old")
    assert run("maskgit-head", tmp_path, "--yes") == 0
    assert "replaces another of 3 bytes" in capsys.readouterr().out
    assert files_below(tmp_path) == {"migm_heads/maskgit-shortcut.pth": 40}


def test_a_broken_download_is_named_and_goes_on_where_it_stopped(
    hub: Hub, tmp_path: Path, capsys: Any
) -> None:
    hub.fails_at = "model-00002-of-00002.safetensors"
    assert run("lumina-dimoo", tmp_path, "--yes") == 1
    message = capsys.readouterr().err
    assert "https://huggingface.co/Alpha-VLLM/Lumina-DiMOO could not be fetched" in message
    assert "OSError: cable pulled out)" in message and "again" in message
    done = list(hub.fetched)
    hub.fails_at = ""
    assert run("lumina-dimoo", tmp_path, "--yes") == 0
    assert sorted(hub.fetched) == sorted(set(hub.fetched)) and hub.fetched[: len(done)] == done


def test_files_that_an_interrupted_run_left_in_folders_come_to_their_places(
    hub: Hub, tmp_path: Path, capsys: Any
) -> None:
    hub.fails_at = "pretrained_maskgit/VQGAN/model.yaml"
    assert run("maskgit-512", tmp_path, "--yes") == 1
    hub.fails_at = ""
    assert run("maskgit-512", tmp_path, "--yes") == 0
    assert len(hub.fetched) == 3
    assert {path.name for path in (tmp_path / "migm").iterdir()} == {
        *("MaskGIT_ImageNet_512.pth", "last.ckpt", "model.yaml", ".cache")
    }


def test_an_interrupted_download_says_how_to_go_on(hub: Hub, tmp_path: Path, capsys: Any) -> None:
    hub.fails_at, hub.failure = "vqvae/config.json", KeyboardInterrupt()
    assert run("lumina-dimoo", tmp_path, "--yes") == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_what_cannot_be_reached_is_named(hub: Hub, tmp_path: Path, capsys: Any) -> None:
    del hub.repositories["Kaiwen-Zhu/MIGM-Shortcut"]
    assert run("dimoo-head", tmp_path) == 1
    message = capsys.readouterr().err
    assert "https://huggingface.co/Kaiwen-Zhu/MIGM-Shortcut could not be reached" in message
    assert "cable pulled out" in message
    assert files_below(tmp_path) == {}


@pytest.mark.parametrize(
    ("what", "gone", "named"),
    [
        ("maskgit-head", "MaskGIT-Shortcut/maskgit-shortcut.pth", "DiMOO-Shortcut/dimoo-shortcut"),
        ("lumina-dimoo", "vqvae/diffusion_pytorch_model.safetensors", "config.json"),
    ],
)
def test_a_file_that_is_no_longer_there_is_named(
    what: str, gone: str, named: str, hub: Hub, tmp_path: Path, capsys: Any
) -> None:
    repository = downloads()[what].repository
    files = hub.repositories[repository]
    hub.repositories[repository] = {name: files[name] for name in files if name != gone}
    assert run(what, tmp_path, "--yes") == 1
    message = capsys.readouterr().err
    pattern = gone.replace("diffusion_pytorch_model", "*")
    assert f"{repository} has no {pattern}; it has " in message and named in message
    assert hub.fetched == []


def test_too_little_room_is_said_before_anything_is_fetched(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=9000))
    assert run("lumina-dimoo", tmp_path / "not yet", "--yes") == 1
    assert "9.65 kB are needed, but only 9 kB are free in" in capsys.readouterr().err
    assert hub.fetched == []
    # What an interrupted run has fetched counts.
    part = tmp_path / "migm" / "Lumina-DiMOO" / ".cache" / "huggingface" / "part.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    assert run("lumina-dimoo", tmp_path, "--yes") == 0


def test_without_the_library_the_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert run("maskgit-head", tmp_path) == 1
    assert "pip install huggingface_hub" in capsys.readouterr().err


def test_the_library_is_not_imported_before_it_is_used(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.delitem(sys.modules, "huggingface_hub", raising=False)
    with pytest.raises(SystemExit):
        main(["download", "--help"])
    assert "huggingface_hub" not in sys.modules
    said = capsys.readouterr().out
    assert all(what in said for what in downloads())


HEAD, SIZE = "MaskGIT-Shortcut/maskgit-shortcut.pth", 40
SHA256 = hashlib.sha256(b"x" * SIZE).hexdigest()
BLOB_ID = hashlib.sha1(b"blob 40\0" + b"x" * SIZE).hexdigest()


@pytest.mark.parametrize(
    ("right", "wrong", "named"),
    [
        (
            {"lfs": SimpleNamespace(sha256=SHA256)},
            {"lfs": SimpleNamespace(sha256="0" * 64)},
            "SHA-256",
        ),
        (
            {"lfs": {"sha256": SHA256}, "blob_id": "of the pointer"},
            {"lfs": {"sha256": "1" * 64}},
            "SHA-256",
        ),
        ({"blob_id": BLOB_ID}, {"blob_id": "0" * 40}, "git hash"),
    ],
)
def test_a_file_that_is_not_as_the_hub_lists_it_is_removed_and_named(
    hub: Hub, tmp_path: Path, capsys: Any, right: Any, wrong: Any, named: str
) -> None:
    hub.listed[HEAD] = wrong
    assert run("maskgit-head", tmp_path, "--yes") == 1
    said = capsys.readouterr().err
    assert "maskgit-shortcut.pth" in said and f"its {named} is" in said and "removed" in said
    assert files_below(tmp_path) == {}
    hub.listed[HEAD] = right
    assert run("maskgit-head", tmp_path, "--yes") == 0
    assert files_below(tmp_path) == {"migm_heads/maskgit-shortcut.pth": SIZE}


def test_a_file_of_the_same_size_and_other_content_is_fetched_anew(
    hub: Hub, tmp_path: Path, capsys: Any
) -> None:
    hub.listed[HEAD] = {"lfs": SimpleNamespace(sha256=SHA256)}
    file = tmp_path / "migm_heads" / "maskgit-shortcut.pth"
    file.parent.mkdir()
    file.write_bytes(b"y" * SIZE)
    assert run("maskgit-head", tmp_path, "--yes") == 0
    assert "replaces another" in capsys.readouterr().out and file.read_bytes() == b"x" * SIZE
    assert run("maskgit-head", tmp_path) == 0
    assert "there already" in capsys.readouterr().out and len(hub.fetched) == 1


def test_a_listing_without_a_revision_is_refused(hub: Hub, tmp_path: Path, capsys: Any) -> None:
    hub.sha = None
    assert run("maskgit-head", tmp_path, "--yes") == 1
    assert "which revision" in capsys.readouterr().err and hub.fetched == []


@pytest.mark.parametrize(
    "name", ["../evil.json", "a/../../evil.json", "..\\evil.json", "C:evil.json"]
)
def test_a_name_that_leads_elsewhere_is_refused(
    hub: Hub, tmp_path: Path, capsys: Any, name: str
) -> None:
    source = replace(downloads()["lumina-dimoo"], files=("*evil.json",))
    hub.repositories[source.repository] = {name: 5}
    with pytest.raises(ValueError, match="not every system"):
        download.listing(hub, source)
