"""The generation behind the server: requests join one batch, each with settings of its own, and leave when they end.

The engine's thread is the only one that touches the model. Handlers submit a [`Job`] and read its events; a handler
whose client has gone away cancels it.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from nanochat_hf.generation import context_length_of
from nanochat_hf.generation.decoding import pad_left
from nanochat_hf.generation.fast_decoder import FastDecoder
from nanochat_hf.generation.live_batch import live_batch
from nanochat_hf.generation.loading import DEFAULT_CONTEXT_LENGTH
from nanochat_hf.generation.row_sampling import RowSampler, RowSettings, draw_rows
from nanochat_hf.generation.text_stream import TextStream
from nanochat_hf.generation.tool_loop import ControlTokens, Turn, decode_exactly
from nanochat_hf.model.loss_nanochat_hf import soft_cap
from nanochat_hf.serving.metrics import Metrics
from nanochat_hf.tools.registry import called_tool, json_text

PREFILL_TOKENS = 2048  # read in one go between two steps, padding included
MAX_WAITING = 256  # prompts
LONGEST_RETRY = 60  # seconds that a refused client is told to wait, at most
SCORE_ELEMENTS = 2**24  # numbers of a prompt's log-probabilities that are held at once
log = logging.getLogger("uvicorn.error")


@dataclass
class Job:
    """One answer to write, or one prompt to score.

    Attributes:
        prompt: token ids.
        max_tokens: of the answer; 0 for a prompt that is only scored.
        settings: how it samples, per row: several rows are several answers to the same prompt.
        stop: texts at which the answer ends; they are not part of it.
        tool: expression → result, for the calls inside the turn; None leaves calls as they are.
        client_tools: names of the functions whose calls end the turn, because the client answers them.
        begin: beginnings, as token ids; the answer has one of them, which the model chooses.
        chat: whether control tokens separate text, calls and results; else the whole answer is text.
        logprobs: how many likely tokens to report per token, beside the written one; None reports none.
        prompt_logprobs: the same for the tokens of the prompt.
    """

    prompt: list[int]
    max_tokens: int
    settings: list[RowSettings] = field(default_factory=lambda: [RowSettings()])
    stop: list[str] = field(default_factory=list)
    tool: Callable[[str], str | None] | None = None
    client_tools: frozenset[str] = frozenset()
    begin: list[list[int]] = field(default_factory=list)
    chat: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None


@dataclass
class TokenScore:
    """A token with its log-probability under the model (temperature 1, no penalties), and its likeliest rivals.

    Attributes:
        token: its id.
        logprob: natural logarithm; None for a prompt's first token.
        top: (id, log-probability), likeliest first.
    """

    token: int
    logprob: float | None
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass
class Event:
    """What one step gave one row.

    Attributes:
        row: number of the answer.
        score: the token that was written.
        special: whether it is a control token.
        pieces: (segment, kind, text): text that is now certain. Kinds are "text", "python" and "python_output".
        finish_reason: of the answer's last event: "stop", "length" or "tool_calls"; else None.
        stop: the stop text that ended the answer, if one did.
    """

    row: int
    score: TokenScore
    special: bool
    pieces: list[tuple[int, str, str]]
    finish_reason: str | None = None
    stop: str | None = None


class EngineError(Exception):
    """The engine failed, or does not take requests."""


class Busy(EngineError):
    """Too many requests wait.

    Attributes:
        retry_after: seconds after which another try may help.
    """

    def __init__(self, waiting: int, retry_after: int):
        super().__init__(f"{waiting} requests wait already, which is this server's limit; try again later")
        self.retry_after = retry_after


class Ticket:
    """A submitted job: its events, in order.

    Attributes:
        job: the job.
        prompt_scores: scores of the prompt's tokens, where asked for; known when the first event arrives.
        created: seconds of the monotonic clock at which the job was submitted.
    """

    def __init__(self, job: Job, loop: asyncio.AbstractEventLoop):
        self.job, self.loop, self.created = job, loop, time.monotonic()
        self.queue: asyncio.Queue[Event | None | EngineError] = asyncio.Queue()
        self.cancelled, self.prompt_scores = False, list[TokenScore]()
        self.first: float | None = None

    def cancel(self) -> None:
        """Nobody waits for the rest: the engine lets its rows go before its next step."""
        self.cancelled = True

    async def events(self) -> AsyncIterator[Event]:
        """Yields the events of all rows. Leaving the loop early cancels the job.

        Raises:
            EngineError: the engine failed.
        """
        try:
            while (event := await self.queue.get()) is not None:
                if isinstance(event, EngineError):
                    raise event
                yield event
        finally:
            self.cancel()


class Row:
    """One answer while it is written."""

    def __init__(self, ticket: Ticket, number: int, control: ControlTokens, tokenizer: Any):
        job = ticket.job
        self.ticket, self.number, self.control, self.tokenizer = ticket, number, control, tokenizer
        self.sampler = RowSampler(job.settings[number], job.prompt)
        self.turn = Turn(control, tokenizer, job.max_tokens, self._run_tool if job.tool else None, job.begin)
        self.segment, self.kind, self.stream, self.held = 0, "text", TextStream(tokenizer), ""
        self.pieces: list[tuple[int, str, str]] = []
        self.stopped_at: str | None = None

    def _run_tool(self, call: str) -> str | None:
        """The tool's result; None if the client answers this call."""
        job = self.ticket.job
        return job.tool(call) if job.tool and called_function(call)[0] not in job.client_tools else None

    def add(self, sampled: int, scores: Callable[[int], TokenScore]) -> Event:
        """Takes the sampled token, or the one that a tool forces; returns what the client sees of it."""
        token = self.turn.add(sampled)
        self.sampler.add(token)
        if token == self.control.call_end and self.kind == "python":
            call = decode_exactly(self.tokenizer, self.stream.ids)
            if called_function(call)[0] in self.ticket.job.client_tools:
                self.turn.finish_reason = "tool_calls"
        self.pieces = []
        special = token in self.control.hidden or token in self.control.stop
        if self.ticket.job.chat and token in self.control.segment_kinds:
            self._flush()
            self.segment, self.kind = self.segment + 1, self.control.segment_kinds[token]
            self.stream = TextStream(self.tokenizer)
        elif not special:
            self._show(self.stream.push(token))
        if self.turn.finish_reason is not None:
            self._flush()
        return Event(self.number, scores(token), special, self.pieces, self.turn.finish_reason, self.stopped_at)

    def _show(self, text: str) -> None:
        """Passes text on, up to a stop text or to what may become one."""
        stops = self.ticket.job.stop if self.kind == "text" else []
        if not stops or self.stopped_at is not None:
            if text and self.stopped_at is None:
                self.pieces.append((self.segment, self.kind, text))
            return
        self.held += text
        found = [(place, stop) for stop in stops if (place := self.held.find(stop)) >= 0]
        if found:
            place, self.stopped_at = min(found)
            self.turn.finish_reason, shown, self.held = "stop", self.held[:place], ""
        else:
            wait = max(
                (size for stop in stops for size in range(1, len(stop)) if self.held.endswith(stop[:size])), default=0
            )
            shown, self.held = self.held[: len(self.held) - wait], self.held[len(self.held) - wait :]
        if shown:
            self.pieces.append((self.segment, self.kind, shown))

    def _flush(self) -> None:
        """Passes on what was held back: the segment ends here."""
        self._show(self.stream.rest())
        if self.held:
            self.pieces.append((self.segment, self.kind, self.held))
            self.held = ""


def called_function(call: str) -> tuple[str, str]:
    """Returns the name of the function that the model calls, and its arguments as JSON text."""
    name, arguments = called_tool(call)
    return name, json_text(arguments)


class Engine:
    """Writes the answers of all requests in one batch, in a thread of its own.

    Attributes:
        model, tokenizer: the checkpoint. All threads share the tokenizer, so nobody may change its settings.
        control: the tokenizer's control tokens.
        context_length: tokens of prompt and answer together.
        defaults: how requests sample that do not say it.
        metrics: what it counts.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_batch: int = 32,
        max_waiting: int = MAX_WAITING,
        metrics: Metrics | None = None,
    ):
        """Prepares the engine; `start` starts its thread.

        Args:
            max_batch: rows that are written at once; further requests wait, the oldest first.
            max_waiting: while so many prompts wait, no further request is taken.
        """
        self.model, self.tokenizer, self.max_batch, self.max_waiting = model, tokenizer, max_batch, max_waiting
        self.metrics = metrics or Metrics()
        self.control = ControlTokens.from_tokenizer(tokenizer, model)
        self.context_length = context_length_of(model) or DEFAULT_CONTEXT_LENGTH
        self.defaults = default_settings(model)
        self._waiting: deque[Ticket] = deque()
        self._rows: list[Row] = []
        self._wake, self._closing = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finishes what was submitted, and ends the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def load(self) -> tuple[int, int]:
        """Returns how many answers are being written, and how many requests wait."""
        return len(self._rows), len(self._waiting)

    def check_room(self) -> None:
        """Refuses work that would be submitted now.

        Raises:
            Busy: too many requests wait.
            EngineError: the engine is being shut down.
        """
        with self._wake:
            if self._closing or not self.alive():
                raise EngineError("the server is shutting down")
            if len(self._waiting) >= self.max_waiting:
                # The oldest has waited about as long as a new one would.
                waited = time.monotonic() - self._waiting[0].created
                raise Busy(len(self._waiting), min(max(math.ceil(waited), 1), LONGEST_RETRY))

    def submit(self, job: Job) -> Ticket:
        """Submits a job from the event loop.

        Raises:
            EngineError: as for `check_room`.
        """
        return self.submit_all([job])[0]

    def submit_all(self, jobs: Sequence[Job]) -> list[Ticket]:
        """Submits the jobs of one request: all or none.

        Raises:
            EngineError: as for `check_room`.
        """
        tickets = [Ticket(job, asyncio.get_running_loop()) for job in jobs]
        with self._wake:
            self.check_room()
            self._waiting += tickets
            self._wake.notify()
        for job in jobs:
            self.metrics.count("nanochat_prompt_tokens_total", len(job.prompt))
        return tickets

    # -- the thread

    def _run(self) -> None:
        batch = live_batch(self.model, self.context_length)
        while True:
            with self._wake:
                while not self._waiting and not self._rows and not self._closing:
                    self._wake.wait()
                if self._closing and not self._waiting and not self._rows:
                    return
            try:
                self._drop_cancelled(batch)
                self._admit(batch)
                if self._rows:
                    self._step(batch)
            except Exception as error:  # of any kind: clients must not wait for ever
                log.exception("generation failed")
                tickets = dict.fromkeys(row.ticket for row in self._rows)
                self._rows, batch = [], live_batch(self.model, self.context_length)
                for ticket in tickets:
                    self._send(ticket, [EngineError(f"generation failed: {error}")])

    def _drop_cancelled(self, batch: Any) -> None:
        gone = {row.ticket for row in self._rows if row.ticket.cancelled}
        for index in range(len(self._rows) - 1, -1, -1):
            if self._rows[index].ticket.cancelled:
                self._remove(batch, index)
        with self._wake:
            gone |= {ticket for ticket in self._waiting if ticket.cancelled}
            if gone:
                self._waiting = deque(ticket for ticket in self._waiting if not ticket.cancelled)
        if gone:
            self.metrics.count("nanochat_requests_cancelled_total", len(gone))

    def _remove(self, batch: Any, index: int) -> None:
        batch.remove(index)
        self._rows[index] = self._rows[-1]
        self._rows.pop()

    def _admit(self, batch: Any) -> None:
        """Reads the prompts of the oldest requests, as many as fit in one go, and writes their first tokens."""
        taken: list[Ticket] = []
        with self._wake:
            rows, longest = len(self._rows), 0
            while self._waiting:
                job = self._waiting[0].job
                rows += len(job.settings) if job.max_tokens else 0
                longest = max(longest, len(job.prompt))
                scored = job.prompt_logprobs is not None
                if taken and (scored or rows > self.max_batch or longest * (len(taken) + 1) > PREFILL_TOKENS):
                    break
                if rows > self.max_batch and self._rows:  # alone, a request may have more rows than the batch
                    break
                taken.append(self._waiting.popleft())
                if scored:
                    break
        if not taken:
            return
        try:
            self._read(batch, taken)
        except Exception as error:
            ours = set(taken)
            for index in range(len(self._rows) - 1, -1, -1):
                if self._rows[index].ticket in ours:
                    self._rows.pop(index)
            for ticket in taken:
                self._send(ticket, [EngineError(f"generation failed: {error}")])
            raise

    def _read(self, batch: Any, taken: list[Ticket]) -> None:
        for ticket in taken:
            if ticket.job.prompt_logprobs is not None:
                ticket.prompt_scores = self._score(ticket.job.prompt, ticket.job.prompt_logprobs)
        writing = [ticket for ticket in taken if ticket.job.max_tokens]
        if writing:
            logits = batch.add([each.job.prompt for each in writing], [len(each.job.settings) for each in writing])
            rows = [
                Row(ticket, number, self.control, self.tokenizer)
                for ticket in writing
                for number in range(len(ticket.job.settings))
            ]
            self._rows += rows
            self._write(batch, logits.clone(), rows, len(self._rows) - len(rows))
        for ticket in taken:
            if not ticket.job.max_tokens:
                self._send(ticket, [None])

    def _step(self, batch: Any) -> None:
        logits = batch.step([row.turn.token_ids[-1] for row in self._rows])
        self.metrics.count("nanochat_steps_total")
        self._write(batch, logits.clone(), list(self._rows), 0)

    @torch.inference_mode()
    def _write(self, batch: Any, logits: torch.Tensor, rows: list[Row], first: int) -> None:
        """Samples a token for these rows, which begin at `first` in the batch, and sends what is new."""
        wanted = [index for index, row in enumerate(rows) if row.ticket.job.logprobs is not None]
        scored: dict[int, torch.Tensor] = {}
        if wanted:
            scored = dict(zip(wanted, logits[wanted].log_softmax(dim=-1), strict=True))
        for index, row in enumerate(rows):
            if allowed := row.turn.allowed():
                others = torch.ones_like(logits[index], dtype=torch.bool)
                others[allowed] = False
                logits[index].masked_fill_(others, -math.inf)
        sampled = draw_rows(logits, [row.sampler for row in rows])
        sent: dict[Ticket, list[Any]] = {}
        failed: dict[Ticket, list[Any]] = {}
        for index, (row, token) in enumerate(zip(rows, sampled, strict=True)):
            count, logprobs = row.ticket.job.logprobs or 0, scored.get(index)

            def score(token: int, logprobs: Any = logprobs, count: int = count) -> TokenScore:
                return TokenScore(token, None) if logprobs is None else token_score(logprobs, token, count)

            try:
                sent.setdefault(row.ticket, []).append(row.add(token, score))
            except Exception as error:  # of any kind: other requests must not end with it
                log.exception("an answer failed")
                failed[row.ticket] = [EngineError(f"generation failed: {error}")]
        now = time.monotonic()
        self.metrics.count("nanochat_generated_tokens_total", len(rows))
        for index in range(first + len(rows) - 1, first - 1, -1):
            if self._rows[index].turn.finish_reason is not None or self._rows[index].ticket in failed:
                self._remove(batch, index)
        unfinished = {row.ticket for row in self._rows}
        for ticket, events in sent.items():
            if ticket.first is None:
                ticket.first = now
                self.metrics.observe("nanochat_time_to_first_token_seconds", now - ticket.created)
            if ticket not in unfinished:
                events.append(None)
                self.metrics.observe("nanochat_request_seconds", now - ticket.created)
        self._deliver(sent | failed)

    def _send(self, ticket: Ticket, events: list[Any]) -> None:
        self._deliver({ticket: events})

    def _deliver(self, sent: dict[Ticket, list[Any]]) -> None:
        """Puts events into the queues, in the event loop's own thread; once per step and loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, list[Any]]]] = {}
        for ticket, events in sent.items():
            by_loop.setdefault(ticket.loop, []).append((ticket, events))
        for loop, pairs in by_loop.items():
            try:
                loop.call_soon_threadsafe(_put, pairs)
            except RuntimeError:  # the loop is closed: nobody reads
                for ticket, _ in pairs:
                    ticket.cancel()

    @torch.inference_mode()
    def _score(self, prompt: Sequence[int], count: int) -> list[TokenScore]:
        """Returns the scores of a prompt's tokens; the first has none, because nothing stands before it."""
        ids, _ = pad_left([prompt], 0, self.model.device)
        scores = [TokenScore(prompt[0], None)]
        if len(prompt) == 1:
            return scores
        size = max(1, SCORE_ELEMENTS // self.model.config.get_text_config().vocab_size)
        parts: Iterator[torch.Tensor]
        if FastDecoder.supports(self.model):  # the head computes a part of the positions at a time
            cap, states = self.model.config.final_logit_softcapping, self.model.model(ids, use_cache=False)[0][0, :-1]
            parts = (soft_cap(self.model.lm_head(part).float(), cap) for part in states.split(size))
        else:
            parts = iter(self.model(input_ids=ids, use_cache=False).logits[0, :-1].split(size))
        for logits in parts:
            targets = prompt[len(scores) : len(scores) + len(logits)]
            scores += token_scores(logits.float().log_softmax(dim=-1), targets, count)
        return scores


def default_settings(model: Any) -> RowSettings:
    """Returns the sampling settings of the model's generation configuration."""
    config = getattr(model, "generation_config", None)

    def value(name: str) -> Any:
        return getattr(config, name, None)

    repetition_penalty = value("repetition_penalty") or 1.0
    if not value("do_sample"):
        return RowSettings(temperature=0, repetition_penalty=repetition_penalty)
    temperature = 1.0 if value("temperature") is None else value("temperature")
    filters = {name: value(name) for name in ("top_k", "top_p", "min_p")}
    return RowSettings(temperature, repetition_penalty=repetition_penalty, **filters)


def token_scores(logprobs: torch.Tensor, tokens: Sequence[int], count: int) -> list[TokenScore]:
    """Returns the scores of tokens [T] under log-probabilities [T, V], each with the `count` likeliest tokens."""
    ids = torch.tensor(list(tokens), device=logprobs.device)
    written = logprobs.gather(1, ids.unsqueeze(1)).squeeze(1).tolist()
    if not count:
        return [TokenScore(token, finite(value)) for token, value in zip(tokens, written, strict=True)]
    values, best = logprobs.topk(min(count, logprobs.shape[-1]), dim=-1)
    rows = zip(tokens, written, best.tolist(), values.tolist(), strict=True)
    return [
        TokenScore(token, finite(value), [(each, finite(one)) for each, one in zip(top, scores, strict=True)])
        for token, value, top, scores in rows
    ]


def token_score(logprobs: torch.Tensor, token: int, count: int) -> TokenScore:
    """The same for one token under [V]."""
    return token_scores(logprobs.unsqueeze(0), [token], count)[0]


def finite(value: float) -> float:
    """A log-probability that JSON can hold."""
    return value if math.isfinite(value) else -9999.0


def _put(pairs: list[tuple[Ticket, list[Any]]]) -> None:
    for ticket, events in pairs:
        for event in events:
            ticket.queue.put_nowait(event)
