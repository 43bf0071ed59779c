"""Pushing to the Hub, against a server on this machine that answers as the Hub does."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from dino_tower.cli import main
from dino_tower.errors import ConfigError
from dino_tower.export.hub import check_repository, push

MakeRun = Callable[[str], Path]
TOKEN = "hf_of_a_test"


class Hub(ThreadingHTTPServer):
    """Repositories in memory: {repository: {path: content}}."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.blobs: dict[str, bytes] = {}
        self.refuses: int | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    """What the library asks for when it creates a repository and uploads a folder."""

    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def answer(self, value: object, code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_PUT(self) -> None:
        content = self.body()
        self.server.blobs[hashlib.sha256(content).hexdigest()] = content
        self.answer({})

    def do_GET(self) -> None:
        self.answer({"error": "you may not look here"}, self.server.refuses or 404)

    def do_POST(self) -> None:
        hub, body = self.server, self.body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and "/put/" not in self.path:
            return self.answer({"error": "no token"}, 401)
        if hub.refuses:
            return self.answer({"error": "you may not write here"}, hub.refuses)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization', 'someone')}/{asked['name']}"
            hub.repositories.setdefault(name, {})
            hub.private[name] = bool(asked.get("private")) or asked.get("visibility") == "private"
            return self.answer({"url": f"{hub.address}/{name}"})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = {True: "lfs", False: "regular"}
            return self.answer(
                {"files": [{"path": f["path"], "uploadMode": modes[f["path"].endswith(".safetensors")],
                            "shouldIgnore": False, "oid": None} for f in files]}
            )  # fmt: skip
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**blob, "actions": {"upload": {"href": f"{hub.address}/put/{blob['oid']}"}}}
                for blob in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if "/commit/" in self.path:
            name = self.path.removeprefix("/api/models/").split("/commit/")[0]
            for line in body.splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    hub.repositories[name][row["value"]["path"]] = base64.b64decode(row["value"]["content"])
                elif row["key"] == "lfsFile":
                    hub.repositories[name][row["value"]["path"]] = hub.blobs[row["value"]["oid"]]
            return self.answer({"commitUrl": f"{hub.address}/{name}/commit/0", "commitOid": "0" * 40})
        self.answer({}, 404 if "validate" not in self.path else 200)
        return None


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on this machine, and a library that knows no other."""
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # chunked storage has a protocol of its own
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
        server.shutdown()


def test_export_pushes_every_file_as_it_is_on_disk(
    hub: Hub, make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(make_run("vits8")), str(tmp_path / "birds"), "--push-to-hub", "someone/birds", "--private"]
    assert main(words) == 0
    assert f"pushed to {hub.address}/someone/birds" in capsys.readouterr().out
    written = {p.name: p.read_bytes() for p in (tmp_path / "birds").iterdir()}
    assert hub.repositories == {"someone/birds": written}
    assert hub.private == {"someone/birds": True}
    assert b'AutoModel.from_pretrained("someone/birds")' in written["README.md"]


@pytest.mark.parametrize("code", [403, 500])
def test_what_the_hub_refuses_is_one_line_and_the_directory_stays(
    hub: Hub, make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    hub.refuses = code
    words = ["export", str(make_run("vits8")), str(tmp_path / "birds"), "--push-to-hub", "someone/birds"]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(code) in line and "is written, so `hf upload someone/birds" in line
    assert (tmp_path / "birds" / "model.safetensors").is_file()


def test_a_hub_that_is_not_there(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="--push-to-hub someone/birds: "):
        push(tmp_path, "someone/birds")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="offline mode is enabled"):
        push(tmp_path, "someone/birds")


@pytest.mark.parametrize("name", ["birds", "a/b/c", "someone/bi rds", "../birds", ""])
def test_what_is_no_repository(name: str) -> None:
    with pytest.raises(ConfigError, match="--push-to-hub"):
        check_repository(name)
