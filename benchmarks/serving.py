"""The server under load: many clients at once, beside one at a time and beside plain `transformers serve`.

    python benchmarks/serving.py                                   # 32 clients with 8 requests each, a random model
    python benchmarks/serving.py --requests 500 --no-peers         # long: nothing lost or mixed up, memory flat
    python benchmarks/serving.py --checkpoint runs/quickstart/rl   # a trained model; without transformers serve
    python benchmarks/serving.py --device cuda --dtype bfloat16 --depth 12

The random model is of the October 2025 architecture, so that plain `transformers serve` can serve its export. Every
client streams one greedy answer after the other, of prompts whose answers are known: each answer is compared with the
one that the same server gave to the same prompt alone. Meanwhile /health is asked ten times per second.

The table has, per server and number of clients: tokens per second of all clients together, seconds to the first token
(median and 95th percentile), the longest wait for /health, the server's memory before and after, and how many answers
were lost or differed.
"""

import argparse
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from benchmark_tools import HelpFormat, train_tokenizer, vocab_size_for

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
from nanochat_hf.conversion import convert_folder
from nanochat_hf.data.sources import open_documents
from nanochat_hf.settings import UserError, run_main
from nanochat_hf.tokenizer import stop_token_ids

PROMPTS = 24  # different prompts, of different lengths
START_SECONDS = 300


def make_checkpoint(options: argparse.Namespace, folder: Path) -> Path:
    """Saves a random model that never ends a turn, with a tokenizer of the microworld."""
    texts = open_documents("microworld").next_batch(1000)
    tokenizer = train_tokenizer(texts, vocab_size_for("microworld", None, 512))
    config = NanochatHFConfig.from_depth(
        options.depth,
        vocab_size=max(options.vocab_size, 64 * (-(-len(tokenizer) // 64))),
        head_dim=options.head_dim,
        sequence_length=options.sequence_length,
        preset="classic",
    )
    torch.manual_seed(0)
    model = NanochatHFForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.02)
        model.lm_head.weight.mul_(5)
        model.lm_head.weight[len(tokenizer) - 9 :] = 0  # neither control tokens nor ids without a token
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "pad_token_id")}
    model.generation_config.update(**tokens, eos_token_id=stop_token_ids(tokenizer))
    model.to(getattr(torch, options.dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Server:
    """A server in a process of its own, until the end of a `with` block."""

    def __init__(self, command: list[str], log: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.command = [*command, "--host", "127.0.0.1", "--port", str(self.port)]
        self.log = log

    def __enter__(self) -> "Server":
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=environment)
        for _ in range(4 * START_SECONDS):
            if self.process.poll() is not None:
                raise UserError(f"the server has ended: {self.log.read_text()[-500:]}")
            try:
                self.health()
                return self
            except OSError:
                time.sleep(0.25)
        raise UserError(f"the server does not answer: {self.log.read_text()[-500:]}")

    def __exit__(self, *_: Any) -> None:
        self.process.terminate()
        self.process.wait(60)

    def health(self) -> float:
        """Seconds until /health answers."""
        begun = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/health")
        connection.getresponse().read()
        connection.close()
        return time.monotonic() - begun

    def memory(self) -> float:
        """MB of the process; 0 where the system does not say."""
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        except OSError:
            return 0.0
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def ask(self, model: str, messages: list[dict[str, str]], length: int) -> tuple[str, int, float]:
        """Streams one answer: its text, its tokens, and the seconds to the first of them."""
        body = {"model": model, "messages": messages, "max_tokens": length, "temperature": 0, "stream": True}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        begun, first, text, tokens = time.monotonic(), None, [], 0
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise OSError(answer.read())
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            for choice in chunk.get("choices", ()):
                if piece := choice["delta"].get("content"):
                    first = first or time.monotonic() - begun
                    text.append(piece)
                    tokens += 1
        connection.close()
        return "".join(text), tokens, first or time.monotonic() - begun


def load(server: Server, model: str, options: argparse.Namespace, clients: int, requests: int) -> dict[str, Any]:
    """Lets clients ask at once; returns a row of the table."""
    chats = [
        [{"role": "user", "content": "The mill is near the pond. " * (1 + index % 6) + str(index)}]
        for index in range(PROMPTS)
    ]
    known = [server.ask(model, chat, options.tokens)[0] for chat in chats]
    firsts, waits, lost, wrong, done = [], [], 0, 0, threading.Event()
    lock, before = threading.Lock(), server.memory()
    written = 0

    def client(number: int) -> None:
        nonlocal lost, wrong, written
        for turn in range(requests):
            index = (number * 7 + turn) % PROMPTS
            try:
                text, _, first = server.ask(model, chats[index], options.tokens)
            except OSError:
                with lock:
                    lost += 1
                continue
            with lock:
                firsts.append(first)
                written += options.tokens
                wrong += text != known[index]

    def watch() -> None:
        while not done.wait(0.1):
            waits.append(server.health())

    watcher = threading.Thread(target=watch)
    watcher.start()
    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - begun
    done.set()
    watcher.join()
    ranked = sorted(firsts) or [0.0]
    return {
        "clients": clients,
        "requests": clients * requests,
        "tokens/s": round(written / seconds),
        "first token s": f"{statistics.median(ranked):.3f}",
        "95 %": f"{ranked[int(0.95 * (len(ranked) - 1))]:.3f}",
        "health s": f"{max(waits, default=0):.3f}",
        "MB": f"{before:.0f} to {server.memory():.0f}",
        "lost": lost,
        "differ": wrong,
    }


def main() -> None:
    options = parse_arguments()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.checkpoint or make_checkpoint(options, Path(scratch, "model"))
        common = ["--device", options.device, "--dtype", options.dtype]
        ours = [sys.executable, "-m", "nanochat_hf.cli", "serve", str(folder), "--max-batch", str(options.max_batch)]
        rows: list[dict[str, Any]] = []
        with Server([*ours, *common], Path(scratch, "ours.log")) as server:
            rows.append({"server": "ours", **load(server, "any", options, options.clients, options.requests)})
            alone = max(1, options.requests // 2)
            rows.append({"server": "ours, one at a time", **load(server, "any", options, 1, alone)})
        if options.peers and not options.checkpoint:
            exported = Path(scratch, "export")
            convert_folder(folder, exported, to="transformers")
            stock = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve"]
            with Server([*stock, str(exported), *common], Path(scratch, "stock.log")) as server:
                count = max(1, options.requests // 4)
                row = load(server, str(exported), options, options.clients, count)
                rows.append({"server": "transformers serve", **row})
    names = list(rows[0])
    print("| " + " | ".join(names) + " | times one at a time |")
    print("|" + "---|" * (len(names) + 1))
    for row in rows:
        factor = row["tokens/s"] / max(rows[1]["tokens/s"], 1)
        print("| " + " | ".join(str(row[name]) for name in names) + f" | {factor:.2f} |")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormat)
    parser.add_argument("--checkpoint", type=Path, help="checkpoint folder to serve; default a random model")
    parser.add_argument("--clients", type=int, default=32, help="clients that ask at once")
    parser.add_argument("--requests", type=int, default=8, help="requests per client, one after the other")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per answer")
    parser.add_argument("--max_batch", type=int, default=32, help="answers that our server writes at once")
    parser.add_argument("--depth", type=int, default=6, help="layers of the random model")
    parser.add_argument("--vocab_size", type=int, default=8192, help="vocabulary of the random model")
    parser.add_argument("--head_dim", type=int, default=64, help="channels per head of the random model")
    parser.add_argument("--sequence_length", type=int, default=512, help="context of the random model")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="dtype of the model")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="leave plain transformers serve out")
    options = parser.parse_args()
    for name in ("clients", "requests", "tokens", "max_batch", "depth"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(options, name)}")
    return options


if __name__ == "__main__":
    run_main(main)
