"""This project's generation behind transformers' server, with the calculator inside the turn.

Imported by `nanochat-hf serve` only: it needs the packages of `transformers[serving]`.
"""

import asyncio
from typing import Any

from transformers.cli.serving.utils import GenerateManager, _StreamError

from nanochat_hf.generation import Rollout, generate_with_tools, stream_chat
from nanochat_hf.tools.calculator import calculate


def can_answer(body: dict[str, Any], config: Any) -> bool:
    """Whether a chat request asks only for what [`stream_chat`] and [`generate_with_tools`] do.

    A client that brings tools wants the calls themselves, not the calculator's answers.

    Args:
        body: the request.
        config: what it asks for, as a `GenerationConfig`.
    """
    return (
        not body.get("tools")
        and body.get("generation_config") is None
        and not config.stop_strings
        and not config.sequence_bias
        and (config.repetition_penalty or 1.0) == 1.0
        and (config.num_beams or 1) == 1
    )


def sampling_of(config: Any) -> dict[str, Any]:
    """Returns a `GenerationConfig` as the fields of [`Sampling`]."""
    if not config.do_sample:
        return {"max_new_tokens": config.max_new_tokens, "temperature": 0}
    temperature = 1.0 if config.temperature is None else config.temperature
    filters = {name: getattr(config, name, None) for name in ("top_k", "top_p", "min_p")}
    return {"max_new_tokens": config.max_new_tokens, "temperature": temperature, **filters}


class StreamState:
    """What transformers' handler asks of a running stream.

    Attributes:
        total_tokens: tokens of the turn; 0 until it is finished.
        cancelled: whether the client has gone away.
    """

    def __init__(self) -> None:
        self.total_tokens, self.cancelled = 0, False

    def cancel(self) -> None:
        """Stops the generation at the next piece of text."""
        self.cancelled = True


class ToolGenerateManager(GenerateManager):
    """Generates one request after the other, on the server's inference thread.

    Args:
        tool: expression → result, or None; see [`generate_with_tools`].
        compiled: compiles the decoding steps.
    """

    def __init__(self, tool: Any = calculate, compiled: bool = False) -> None:
        super().__init__()
        self.tool, self.compiled = tool, compiled

    def generate_streaming(
        self,
        model: Any,
        processor: Any,
        inputs: dict[str, Any],
        gen_config: Any,
        request_id: str,
        response_parser: Any = None,
        seed: int | None = None,
    ) -> tuple[asyncio.Queue, StreamState]:
        """Starts a turn.

        Args:
            processor: the tokenizer.
            inputs: `input_ids`, int64 [1, T].
            seed: of this turn's random numbers.

        Returns:
            A queue and the stream's state. The queue receives the assistant's text, piece by piece, without tool calls
            and outputs. Its last item is None.
        """
        loop, queue, state = asyncio.get_running_loop(), asyncio.Queue(), StreamState()
        options = dict(seed=seed, tool=self.tool, compiled=self.compiled, **sampling_of(gen_config))

        def put(item: Any) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, item)

        def run() -> None:
            try:
                for chunk in stream_chat(model, processor, inputs["input_ids"][0].tolist(), **options):
                    if chunk.rollout is not None:
                        state.total_tokens = len(chunk.rollout.token_ids)
                    elif chunk.type == "text":
                        put(chunk.text)
                    if state.cancelled:
                        break
            except Exception as error:  # of any kind: the client must not wait for ever
                put(_StreamError(str(error)))
            put(None)

        self.submit(run)
        return queue, state

    async def answer(
        self, model: Any, processor: Any, inputs: dict[str, Any], gen_config: Any, seed: int | None = None
    ) -> Rollout:
        """Generates a whole turn; the arguments are those of `generate_streaming`."""
        options = dict(seed=seed, tool=self.tool, compiled=self.compiled, **sampling_of(gen_config))
        prompt = inputs["input_ids"][0].tolist()
        groups = await self.async_submit(generate_with_tools, model, processor, [prompt], **options)
        return groups[0][0]
