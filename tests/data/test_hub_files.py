"""Data sets of the Hub, from a small local server that fails as a test tells it to."""

import hashlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

import pytest
from toy import make_documents, write_parquet

from nanochat_hf.data import hub_files
from nanochat_hf.data.found import find_source
from nanochat_hf.data.overview import describe_data
from nanochat_hf.data.sources import open_documents
from nanochat_hf.settings import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """`files`: content by name. `faults`: what happens on each next download: a status, "cut" or "altered"."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.card: dict = {}
        self.faults: list[int | str] = []
        self.downloads: Counter[str] = Counter()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def answer(self, status, body=b"", headers=None, length=None):
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body) if length is None else length))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)
                if length is not None and length > len(body):
                    self.close_connection = True

            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                path = unquote(urlparse(self.path).path)
                if path.startswith("/api/datasets/o/d"):
                    self.answer(200, json.dumps(hub.info()).encode(), {"Content-Type": "application/json"})
                elif path.startswith("/datasets/o/d/resolve/"):
                    self.serve(path.split("/", 6)[6])
                else:
                    self.answer(404, headers={"X-Error-Code": "RepoNotFound"})

            def serve(self, name):
                content = hub.files[name]
                headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
                if self.command == "HEAD":
                    return self.answer(200, content, headers)
                hub.downloads[name] += 1
                fault = hub.faults.pop(0) if hub.faults else None
                if isinstance(fault, int):
                    return self.answer(fault)
                if fault == "cut":
                    return self.answer(200, content[: len(content) // 2], headers, length=len(content))
                if fault == "altered":
                    content = content[:100] + bytes([content[100] ^ 1]) + content[101:]
                start = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0]
                if int(start):
                    headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                    return self.answer(206, content[int(start) :], headers)
                self.answer(200, content, headers)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def info(self) -> dict:
        siblings = [
            {
                "rfilename": name,
                "size": len(content),
                "blobId": hashlib.sha1(content).hexdigest(),
                "lfs": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1},
            }
            for name, content in self.files.items()
        ]
        return {"id": "o/d", "sha": COMMIT, "siblings": siblings, "cardData": self.card, "tags": []}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    made = Hub()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{made.server.server_address[1]}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub_files, "RETRY_SECONDS", (0, 0, 0))
    yield made
    made.server.shutdown()
    made.server.server_close()


def add_shards(hub, tmp_path, names) -> list[list[str]]:
    made = []
    for number, name in enumerate(names):
        made.append(make_documents(40, f"s{number}_"))
        hub.files[name] = write_parquet(tmp_path / "shard.parquet", made[-1], 16).read_bytes()
    hub.files["README.md"] = b"# A data set"
    return made


def test_shards_are_read_in_order_and_the_last_is_pinned_for_validation(hub, tmp_path):
    shards = add_shards(hub, tmp_path, [f"shard_{i:05d}.parquet" for i in range(4)])
    assert list(open_documents("o/d")) == shards[0] + shards[1] + shards[2]
    assert list(open_documents("o/d", "validation")) == shards[3]
    assert max(hub.downloads.values()) == 1, "what is in the cache is not fetched again"


def test_only_what_is_read_next_is_fetched(hub, tmp_path):
    add_shards(hub, tmp_path, [f"shard_{i:05d}.parquet" for i in range(9)])
    stream = open_documents("o/d")
    next(stream)
    for thread in threading.enumerate():
        if thread.name.startswith("fetch-"):
            thread.join()
    assert sorted(hub.downloads) == ["shard_00000.parquet", "shard_00001.parquet"]


@pytest.mark.parametrize("faults", [[503], ["cut"], ["altered"], [500, "cut", "altered"]])
def test_a_failed_or_damaged_download_is_tried_again(hub, tmp_path, faults):
    (documents, _) = add_shards(hub, tmp_path, ["a.parquet", "b.parquet"])
    hub.faults = list(faults)
    assert list(open_documents("o/d")) == documents
    assert not hub.faults and hub.downloads["a.parquet"] >= len(faults) + 1


def test_a_download_that_stays_damaged_stops_the_run_even_where_bad_files_are_skipped(hub, tmp_path):
    add_shards(hub, tmp_path, ["a.parquet", "b.parquet", "c.parquet"])
    hub.faults = ["altered"] * 9
    with pytest.raises(UserError, match="a.parquet of o/d arrives damaged again and again"):
        next(open_documents("o/d", on_bad_file="skip"))


def test_splits_and_configs_of_the_card_are_used(hub, tmp_path):
    names = ["en/train-0.parquet", "en/train-1.parquet", "en/test-0.parquet", "de/x.parquet", "de/y.parquet"]
    shards = add_shards(hub, tmp_path, names)
    english = [{"split": "train", "path": "en/train-*"}, {"split": "validation", "path": ["en/test-*"]}]
    hub.card = {"configs": [{"config_name": "english", "data_files": english}]}
    assert list(open_documents("o/d:english")) == shards[0] + shards[1]
    assert list(open_documents("o/d:english", "validation")) == shards[2]
    assert list(open_documents("o/d:de")) == shards[3], "a folder is a config too"
    with pytest.raises(UserError, match="no config or folder fr .configs: english"):
        open_documents("o/d:fr")


def test_descriptions_are_no_data_and_a_single_shard_serves_both_splits(hub, tmp_path):
    (documents,) = add_shards(hub, tmp_path, ["data/train-00000-of-00001.parquet"])
    for name in ("dataset_infos.json", "notes.md", "LICENSE", ".gitattributes", "picture.png", "state.json"):
        hub.files[name] = b'{"text": "no data"}'
    hub.files["empty.txt"] = b""
    read = [list(open_documents("o/d", split)) for split in ("train", "validation")]
    assert read[1] == documents[::20] and sorted(read[0] + read[1]) == sorted(documents)
    assert {name: why for name, why in find_source("o/d").left_out} == {
        "README.md": "describes the data",
        "dataset_infos.json": "describes the data",
        "notes.md": "describes the data",
        "LICENSE": "describes the data",
        "state.json": "describes the data",
        ".gitattributes": "hidden",
        "picture.png": "no known format",
        "empty.txt": "empty",
    }
    table = describe_data("o/d").splitlines()
    size = len(hub.files["data/train-00000-of-00001.parquet"])
    assert table[1].split() == ["o/d", "train", "part", "of", "1", f"{size - round(size / 20):,}", "95.0%"]


def test_a_data_set_of_several_configs_without_a_default_asks_for_one(hub, tmp_path):
    add_shards(hub, tmp_path, ["a/x.parquet", "b/y.parquet"])
    hub.card = {"configs": [{"config_name": name, "data_files": f"{name}/*"} for name in "ab"]}
    with pytest.raises(UserError, match=r"o/d has several configs \(a, b\); name one, as o/d:a"):
        open_documents("o/d")
    assert len(list(open_documents("o/d:b"))) == 38


def test_an_unknown_data_set_is_said_at_once(hub):
    with pytest.raises(UserError, match="no file or folder o/missing, and as a data set of the Hub"):
        open_documents("o/missing")
