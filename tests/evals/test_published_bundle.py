"""The published bundle of CORE: downloaded once, and named where it cannot be had."""

import http.server
import io
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import datasets
import pytest

from nanochat_hf.evals import bundle
from nanochat_hf.evals.bundle import bundle_folder, check_bundle, load_bundle, write_tasks
from nanochat_hf.settings import UserError

ITEMS = [{"query": f"Is {number} even?", "choices": ["yes", "no"], "gold": number % 2} for number in range(3)]


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.downloads += 1
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves `tmp_path`/web in place of upstream's host; what is downloaded goes into `tmp_path`/cache."""
    (tmp_path / "web").mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path / "web"))
    server.downloads = 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(bundle, "BUNDLE_URL", f"http://127.0.0.1:{server.server_port}/eval_bundle.zip")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()


def publish(tmp_path, top="eval_bundle"):
    folder = write_tasks(tmp_path / "made" / top, "made", {"even": (ITEMS, "multiple_choice", 0, " ", 50.0)})
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as files:
        for path in folder.rglob("*"):
            files.write(path, path.relative_to(folder.parent))
    (tmp_path / "web" / "eval_bundle.zip").write_bytes(packed.getvalue())


def test_it_is_downloaded_once_and_then_needs_no_network(server, tmp_path):
    publish(tmp_path)
    with ThreadPoolExecutor(4) as threads:  # as the processes of one run do
        folders = set(threads.map(bundle_folder, ["core"] * 4))
    assert len(folders) == 1 and server.downloads == 1
    server.shutdown()
    server.server_close()
    assert [entry["label"] for entry in check_bundle("core")] == ["even"]
    (task,) = load_bundle("core")
    assert sorted(task.items, key=lambda item: item["query"]) == ITEMS
    left = {path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()}
    assert left == {folders.pop().name}, "the folder it was unpacked in is removed"


@pytest.mark.parametrize("kind", ["no server", "no file", "another folder"])
def test_what_cannot_be_downloaded_is_said_with_the_other_way(server, tmp_path, kind):
    if kind == "another folder":
        publish(tmp_path, top="other")
    if kind == "no server":
        server.shutdown()
        server.server_close()
    with pytest.raises(UserError, match=r"eval_bundle\.zip could not be downloaded \(.+\); get it by other means"):
        bundle_folder("core")


def test_a_damaged_download_is_fetched_again(server, tmp_path):
    publish(tmp_path)
    whole = (tmp_path / "web" / "eval_bundle.zip").read_bytes()
    (tmp_path / "web" / "eval_bundle.zip").write_bytes(whole[:100])
    with pytest.raises(UserError, match="is no intact ZIP file; run the same command again"):
        bundle_folder("core")
    (tmp_path / "web" / "eval_bundle.zip").write_bytes(whole)
    assert check_bundle("core")
