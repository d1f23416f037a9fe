"""A model behind a server, through huggingface_hub's `InferenceClient`.

Two protocols:

    chat             OpenAI's chat completions: `nanochat-hf serve`, text-generation-inference, vLLM, …
    text-generation  text-generation-inference's own: the server continues the last message, without a chat format

The key of a server that wants one is read from NANOCHAT_API_KEY or HF_TOKEN. A busy server is asked again.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from nanochat_hf.chat.models import Answer, Message, Piece
from nanochat_hf.settings import UserError
from nanochat_hf.tools.presentation import said_text
from nanochat_hf.tools.registry import run_tool, schemas, written_call

PROTOCOLS = ("chat", "text-generation")
BUSY = (429, 502, 503, 504)  # HTTP status: worth another try
MAX_TRIES = 4
MAX_WAIT = 10.0  # seconds between two tries, at most
MAX_TOOL_ROUNDS = 8  # calls in one answer, one after the other


class RemoteModel:
    """A model behind a server.

    Attributes:
        name: the server's address.
        sampling: of what the user does not choose, the server's own top-k.
    """

    sampling: dict[str, Any] = {"top_k": None}

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        protocol: str = "chat",
        tools: bool = False,
        key: str | None = None,
        timeout: float = 120.0,
    ):
        """Prepares the client; nothing is sent yet.

        Args:
            url: address of the server, such as http://localhost:8000, with or without /v1.
            model: name of the model there; default: what the server has.
            protocol: "chat" or "text-generation".
            tools: offers our tools to the server's model and answers its calls here. A server that runs the tools
                itself, as `nanochat-hf serve` does, does not need it.
            key: default: NANOCHAT_API_KEY or HF_TOKEN from the environment.
            timeout: seconds without any answer after which the server counts as gone.

        Raises:
            UserError: the address or the protocol is none.
        """
        from huggingface_hub import InferenceClient

        if not url.startswith(("http://", "https://")):
            raise UserError(f"{url!r} is not an address of a server; write it as http://HOST:PORT")
        if protocol not in PROTOCOLS:
            raise UserError(f"there is no protocol {protocol!r}; use {' or '.join(PROTOCOLS)}")
        self.name = self.url = url.rstrip("/")
        self.protocol, self.tools = protocol, tools
        key = key or os.environ.get("NANOCHAT_API_KEY") or os.environ.get("HF_TOKEN")
        # Without a token the client would send the one of `hf auth login` to any server; an empty one sends nothing.
        token = key or ""
        base = self.url if protocol == "chat" else self.url.removesuffix("/v1")
        self.client = InferenceClient(base_url=base, token=token, timeout=timeout)
        self.model = model

    def fit(self, messages: Sequence[Message], max_new_tokens: int) -> tuple[list[Message], int]:
        """See [`Model.fit`]. Nothing is left out: the server's context length is not known here."""
        return list(messages), 0

    def answer(self, messages: Sequence[Message], **sampling: Any) -> Iterator[Piece | Answer]:
        """See [`Model.answer`]. A busy server is asked again, as long as it has not begun to answer."""
        run = self._chat if self.protocol == "chat" else self._continue
        for attempt in range(1, MAX_TRIES + 1):
            begun = False
            try:
                for piece in run(messages, sampling):
                    begun = True
                    yield piece
                return
            except UserError:
                raise
            except Exception as error:  # of httpx or of the client: all mean that the server did not answer
                wait = _retry_after(error, attempt)
                if begun or wait is None or attempt == MAX_TRIES:
                    raise UserError(self._explain(error, begun)) from None
                time.sleep(wait)

    # ---- the two protocols ---------------------------------------------------------

    def _chat(self, messages: Sequence[Message], sampling: dict[str, Any]) -> Iterator[Piece | Answer]:
        sent: list[dict[str, Any]] = []
        for message in messages:
            sent.append({"role": message["role"], "content": said_text(message["content"])})
        options: dict[str, Any] = {
            "max_tokens": sampling.get("max_new_tokens"),
            "temperature": sampling.get("temperature"),
            "top_p": sampling.get("top_p"),
            "seed": sampling.get("seed"),
        }
        if self.tools:
            options["tools"] = schemas()
        # Top-k is not in OpenAI's protocol, and strict servers refuse a request that has it: only one who chose it
        # sends it.
        extra = {"model": self.model or None, "top_k": sampling.get("top_k")}
        options["extra_body"] = {name: value for name, value in extra.items() if value is not None}
        parts: list[dict[str, str]] = []
        for _ in range(MAX_TOOL_ROUNDS):
            text, calls, reason = "", {}, "stop"
            for event in self.client.chat_completion(sent, stream=True, **options):
                if not event.choices:
                    continue
                choice = event.choices[0]
                if choice.delta.content:
                    text += choice.delta.content
                    yield Piece("text", choice.delta.content)
                for call in choice.delta.tool_calls or ():
                    name, arguments = calls.get(call.index or 0, ("", ""))
                    calls[call.index or 0] = (
                        name + (call.function.name or ""),
                        arguments + (call.function.arguments or ""),
                    )
                reason = choice.finish_reason or reason
            if text:
                parts.append({"type": "text", "text": text})
            if not (self.tools and calls):
                break
            asked, results = [], []
            for number, (name, arguments) in sorted(calls.items()):
                given = _arguments(arguments)
                result, written = run_tool(name, given), written_call(name, given)
                yield Piece("python", written)
                parts.append({"type": "python", "text": written})
                if result is not None:
                    yield Piece("python_output", result)
                    parts.append({"type": "python_output", "text": result})
                function = {"name": name, "arguments": arguments}
                asked.append({"id": f"call_{len(parts)}_{number}", "type": "function", "function": function})
                refusal = f"the tool {name} has no result for this"
                results.append({"role": "tool", "tool_call_id": asked[-1]["id"], "content": result or refusal})
            sent += [{"role": "assistant", "content": text, "tool_calls": asked}, *results]
        yield Answer(_content(parts), "length" if reason == "length" else "stop")

    def _continue(self, messages: Sequence[Message], sampling: dict[str, Any]) -> Iterator[Piece | Answer]:
        if messages[0]["role"] == "system":
            raise UserError(
                "the protocol text-generation has no system message; leave it out, or take the protocol chat"
            )
        temperature, top_p = sampling.get("temperature"), sampling.get("top_p")
        options = {
            "max_new_tokens": sampling.get("max_new_tokens"),
            "do_sample": bool(temperature),
            "temperature": temperature or None,
            "top_k": sampling.get("top_k") or None,  # the protocol has no 0
            "top_p": top_p if top_p and top_p < 1 else None,
            "seed": sampling.get("seed"),
        }
        text, reason = "", "stop"
        prompt = said_text(messages[-1]["content"])
        for event in self.client.text_generation(prompt, stream=True, details=True, **options):
            piece = "" if event.token.special else event.token.text
            if piece:
                text += piece
                yield Piece("text", piece)
            if event.details is not None:
                reason = str(event.details.finish_reason)
        yield Answer(text, "length" if reason == "length" else "stop")

    # ---- errors --------------------------------------------------------------------

    def _explain(self, error: Exception, begun: bool) -> str:
        from huggingface_hub.errors import TextGenerationError

        status = _status(error)
        reason = _reason(error)
        if begun:
            return f"{self.url} broke off in the middle of its answer ({reason}); its own log says more"
        if status is None and isinstance(error, TextGenerationError):  # the server's own, in its stream
            return f"{self.url} failed ({reason}); its own log says more"
        if status is None:
            return f"{self.url} does not answer ({reason}); is a server running there?"
        if status in (401, 403):
            return f"{self.url} refuses the key (HTTP {status}); set NANOCHAT_API_KEY or HF_TOKEN to one that it knows"
        if status in (404, 405):
            other = PROTOCOLS[1 - PROTOCOLS.index(self.protocol)]
            return f"{self.url} does not speak the protocol {self.protocol} (HTTP {status}); try {other}"
        if status in BUSY:
            return f"{self.url} is busy (HTTP {status}); try again later"
        if status < 500:
            advice = "; leave --top-k out if this server does not know it" if "top_k" in reason else ""
            return f"{self.url} refused the request: {reason}{advice}"
        return f"{self.url} failed (HTTP {status}: {reason}); its own log says more"


def _response(error: Exception) -> Any:
    """The server's HTTP answer to a request that failed; the client's errors of text generation have it as a cause."""
    return getattr(error, "response", None) or getattr(error.__cause__, "response", None)


def _status(error: Exception) -> int | None:
    return getattr(_response(error), "status_code", None)


def _retry_after(error: Exception, attempt: int) -> float | None:
    """Seconds to wait before another try; None where another try would not help."""
    if _status(error) not in BUSY:
        return None
    wanted = _response(error).headers.get("retry-after", "")
    seconds = float(wanted) if wanted.replace(".", "", 1).isdigit() else 0.5 * 2 ** (attempt - 1)
    return min(seconds, MAX_WAIT)


def _reason(error: Exception) -> str:
    """The server's own sentence if it sent one, else the error's."""
    found: Any = error.args[0] if error.args else None  # of an error inside a stream, the object that was sent
    try:
        body = json.loads(_response(error).text)
        found = body.get("error") or body.get("detail") or body.get("message")
    except Exception:  # no answer, a streamed one that was not read, or none in JSON
        pass
    found = found.get("message") if isinstance(found, dict) else found
    if isinstance(found, str) and found.strip():
        return found.strip()
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _arguments(written: str) -> dict[str, Any]:
    """The arguments of a call, a JSON object. Other text is taken as the calculator's expression."""
    try:
        found = json.loads(written)
    except ValueError:
        found = written
    return found if isinstance(found, dict) else {"expression": str(found)}


def _content(parts: list[dict[str, str]]) -> str | list[dict[str, str]]:
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts
