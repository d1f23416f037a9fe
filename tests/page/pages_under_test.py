"""The page in tests: started as a user starts it, or with a model that says what a test wants."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from started_server import free_port

from nanochat_hf.chat import Answer, Piece


class SayingModel:
    """A model that answers with the user's own message, or as `replies` say. "slow" never ends by itself."""

    name = "saying"

    def __init__(self, **replies: list[dict[str, str]] | str):
        self.replies, self.asked, self.running = replies, [], 0

    def fit(self, messages, max_new_tokens):
        return list(messages), 0

    def answer(self, messages, **sampling):
        self.asked.append(list(messages))
        said = messages[-1]["content"]
        if said == "fail":
            raise RuntimeError("a bug of the server, with a secret in it")
        if said == "slow":
            self.running += 1
            try:
                for number in range(2_000):
                    time.sleep(0.03)
                    yield Piece("text", f"tick {number}. ")
            finally:
                self.running -= 1
        content = self.replies.get(said, said)
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        for part in parts:
            yield Piece(part["type"], part["text"])
        yield Answer(content)


@contextmanager
def served(page) -> Iterator[str]:
    """Serves a page from this process."""
    from nanochat_hf.page.app import build, launch

    app, port = build(page), free_port()
    launch(app, "127.0.0.1", port, prevent_thread_lock=True, quiet=True)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        app.close(verbose=False)


@contextmanager
def trap() -> Iterator[tuple[str, list[str]]]:
    """A server on loopback that no page may ever ask for anything; yields its address and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        do_POST = do_HEAD = do_OPTIONS = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
