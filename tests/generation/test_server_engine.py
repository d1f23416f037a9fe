"""The generation behind the server's chat completions, with a model that follows a script."""

import asyncio

import torch
from transformers import GenerationConfig

from nanochat_hf.serving.engine import ToolGenerateManager, can_answer, sampling_of

CALL, CALL_END, OUTPUT, OUTPUT_END = range(261, 265)
END = 260
GREEDY = GenerationConfig(max_new_tokens=40, do_sample=False)


def calculating(scripted, tokenizer):
    """Says "So ", calls the calculator with 12*3, says "36!"."""

    def text(words):
        return tokenizer.encode(words, add_special_tokens=False)

    return scripted({99: [0, *text("So "), CALL, *text("12*3"), CALL_END, 0, 0, 0, 0, *text("36!"), END]})


async def read_all(queue):
    items = []
    while (item := await asyncio.wait_for(queue.get(), 30)) is not None:
        items.append(item)
    return items


def test_the_calculator_answers_and_the_client_sees_text(scripted, tokenizer):
    model, inputs = calculating(scripted, tokenizer), {"input_ids": torch.tensor([[99, 3]])}

    async def run():
        manager = ToolGenerateManager()
        rollout = await manager.answer(model, tokenizer, inputs, GREEDY)
        queue, progress = manager.generate_streaming(model, tokenizer, inputs, GREEDY, "request")
        return rollout, await read_all(queue), progress.total_tokens

    rollout, pieces, tokens = asyncio.run(run())
    assert rollout.text == "So 36!" == "".join(pieces) and len(pieces) > 3
    assert {"type": "python_output", "text": "36"} in rollout.messages[0]["content"]
    assert tokens == len(rollout.token_ids) == 17


def test_a_failure_reaches_the_client(scripted, tokenizer):
    model = scripted({})  # knows no script for this prompt

    async def run():
        queue, _ = ToolGenerateManager().generate_streaming(
            model, tokenizer, {"input_ids": torch.tensor([[99, 3]])}, GREEDY, "request"
        )
        return await read_all(queue)

    (error,) = asyncio.run(run())
    assert "99" in error.msg


def test_cancelling_stops_the_model(scripted, tokenizer):
    model = scripted({99: [0] + [65] * 200})

    async def run():
        config = GenerationConfig(max_new_tokens=200, do_sample=False)
        inputs = {"input_ids": torch.tensor([[99, 3]])}
        queue, progress = ToolGenerateManager().generate_streaming(model, tokenizer, inputs, config, "request")
        await queue.get()
        progress.cancel()
        await read_all(queue)

    asyncio.run(run())
    assert len(model.seen) < 150


def test_what_only_transformers_can_do_is_left_to_it():
    assert can_answer({}, GREEDY)
    assert not can_answer({"tools": [{}]}, GREEDY)
    assert not can_answer({}, GenerationConfig(stop_strings=["x"]))
    assert not can_answer({}, GenerationConfig(repetition_penalty=1.2))
    assert sampling_of(GREEDY) == {"max_new_tokens": 40, "temperature": 0}
    sampled = sampling_of(GenerationConfig(max_new_tokens=5, do_sample=True, temperature=0.7, top_k=9, top_p=0.5))
    assert (sampled["temperature"], sampled["top_k"], sampled["top_p"]) == (0.7, 9, 0.5)
