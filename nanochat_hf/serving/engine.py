"""Our generation behind transformers' server: the calculator answers inside the turn, and steps are our own.

Imported by `nanochat-hf serve` alone; it needs the packages of `transformers[serving]`.
"""

import asyncio
from typing import Any

from transformers.cli.serving.utils import GenerateManager, _StreamError

from nanochat_hf.generation import Rollout, generate_with_tools, stream_chat
from nanochat_hf.tools.calculator import calculate


def can_answer(body: dict[str, Any], config: Any) -> bool:
    """Whether a chat request asks for nothing that only transformers' `generate` does.

    A client that brings tools wants the calls themselves, not our calculator's answers.
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
    """A `GenerationConfig` as the fields of [`Sampling`]."""
    if not config.do_sample:
        return {"max_new_tokens": config.max_new_tokens, "temperature": 0}
    temperature = 1.0 if config.temperature is None else config.temperature
    filters = {name: getattr(config, name, None) for name in ("top_k", "top_p", "min_p")}
    return {"max_new_tokens": config.max_new_tokens, "temperature": temperature, **filters}


class Progress:
    """What the server asks of a running stream."""

    def __init__(self) -> None:
        self.total_tokens, self.cancelled = 0, False

    def cancel(self) -> None:
        self.cancelled = True


class ToolGenerateManager(GenerateManager):
    """Runs one request after the other on the server's inference thread."""

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
    ) -> tuple[asyncio.Queue, Progress]:
        """Starts a turn; its text arrives in the queue, then None. Tool calls and outputs are not text."""
        loop, queue, progress = asyncio.get_running_loop(), asyncio.Queue(), Progress()
        options = dict(seed=seed, tool=self.tool, compiled=self.compiled, **sampling_of(gen_config))

        def put(item: Any) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, item)

        def run() -> None:
            try:
                for chunk in stream_chat(model, processor, inputs["input_ids"][0].tolist(), **options):
                    if chunk.rollout is not None:
                        progress.total_tokens = len(chunk.rollout.token_ids)
                    elif chunk.type == "text":
                        put(chunk.text)
                    if progress.cancelled:
                        break
            except Exception as error:  # whatever it is, the client must not wait for ever
                put(_StreamError(str(error)))
            put(None)

        self.submit(run)
        return queue, progress

    async def answer(
        self, model: Any, processor: Any, inputs: dict[str, Any], gen_config: Any, seed: int | None = None
    ) -> Rollout:
        """A whole turn."""
        options = dict(seed=seed, tool=self.tool, compiled=self.compiled, **sampling_of(gen_config))
        prompt = inputs["input_ids"][0].tolist()
        groups = await self.async_submit(generate_with_tools, model, processor, [prompt], **options)
        return groups[0][0]
