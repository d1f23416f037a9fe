"""A second tool: declared once, taught by SFT, used in rollouts, chat and server; and tools of other templates."""

import asyncio
import datetime
import json

import pytest
import torch
from chat_toy import run_stage

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM, tokenizer
from nanochat_hf.generation import generate_with_tools, load_checkpoint, stream_chat
from nanochat_hf.tools.registry import written_call

DATES = [f"2026-0{month}-1{day}" for month in (3, 5) for day in (1, 2, 4, 6)]


def question(date):
    return {"role": "user", "content": f"Which day is {date}?"}


def conversation(date):
    """In OpenAI's form. The result is a wrong one, so that right ones can only come from the tool."""
    call = {"id": "1", "type": "function", "function": {"name": "weekday", "arguments": {"date": date}}}
    return [
        question(date),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "Someday"},
        {"role": "assistant", "content": "That is the day."},
    ]


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A small model after SFT on conversations with calls of `weekday`."""
    folder = tmp_path_factory.mktemp("run")
    texts = ["Which day is 2026-03-11? That is the day. Someday Monday Tuesday", *DATES]
    words = tokenizer.train([*texts, *(written_call("weekday", {"date": date}) for date in DATES)] * 9, 320)
    torch.manual_seed(0)
    config = NanochatHFConfig.from_depth(2, vocab_size=384, sequence_length=128, head_dim=32, aspect_ratio=32)
    config.bos_token_id, config.eos_token_id = words.bos_token_id, words.eos_token_id
    config.pad_token_id = words.pad_token_id
    NanochatHFForCausalLM(config).save_pretrained(folder / "base")
    words.save_pretrained(folder / "base")
    with (folder / "chats.jsonl").open("w") as file:
        for date in DATES:
            file.write(json.dumps(conversation(date)) + "\n")
    options = {"model": folder / "base", "output_dir": folder / "sft", "tasks": f"conversations={folder}/chats.jsonl"}
    options |= {"num_iterations": 240, "total_batch_size": 512, "device_batch_size": 4, "num_threads": 1}
    options |= {"save_every": 0, "init_lr_frac": 0.5, "momentum_warmup_steps": 20}
    run_stage("sft", *(word for name, value in options.items() for word in (f"--{name}", value)))
    return load_checkpoint(folder / "sft", device="cpu")


def check(parts, date):
    assert [part["type"] for part in parts] == ["python", "python_output", "text"], parts
    assert json.loads(parts[0]["text"]) == {"name": "weekday", "arguments": {"date": date}}
    assert parts[1]["text"] == datetime.date.fromisoformat(date).strftime("%A")
    assert parts[2]["text"] == "That is the day."


def test_rollouts_use_the_tool_and_mask_its_result(taught):
    model, words = taught
    groups = generate_with_tools(model, words, [[question(date)] for date in DATES], max_new_tokens=64, temperature=0)
    for date, [rollout] in zip(DATES, groups, strict=True):
        check(rollout.messages[0]["content"], date)
        forced = [token for token, chosen in zip(rollout.token_ids, rollout.sampled, strict=True) if not chosen]
        day = datetime.date.fromisoformat(date).strftime("%A")
        assert words.decode(forced) == f"<|output_start|>{day}<|output_end|>"


def test_a_chat_shows_the_call_and_the_result(taught):
    model, words = taught
    chunks = list(stream_chat(model, words, [question(DATES[0])], max_new_tokens=64, temperature=0))
    check(chunks[-1].rollout.messages[0]["content"], DATES[0])
    assert "".join(chunk.text for chunk in chunks if chunk.type == "python_output") == "Wednesday"


def test_the_server_runs_the_tool_inside_the_answer(taught):
    from nanochat_hf.serving.engine import Engine
    from nanochat_hf.serving.fields import Fields
    from nanochat_hf.serving.openai_api import collect
    from nanochat_hf.serving.requests import chat_job

    model, words = taught

    async def ask():
        engine = Engine(model, words)
        engine.start()
        try:
            job, messages = chat_job(Fields({"messages": [question(DATES[1])], "temperature": 0}), engine)
            job.prompt.extend(words.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
            return (await asyncio.wait_for(collect(engine.submit(job)), 60))[0]
        finally:
            engine.stop()

    answer = asyncio.run(ask())
    check(answer.parts(), DATES[1])
    assert answer.text == "That is the day." and answer.finish_reason == "stop"


# ---- models whose template has a form of its own ------------------------------------


class Script:
    """In place of the sampling: each row says what the script has for the prompt's end."""

    def __init__(self, words, answers):
        self.words, self.answers, self.seen = words, answers, []

    def __call__(self, model, tokenizer, prompts, *, num_samples=1, **options):
        from nanochat_hf.generation import Rollout

        self.seen.append((len(prompts), num_samples, options["max_new_tokens"]))
        groups = []
        for prompt in prompts:
            text = self.answers.pop(0)
            ids = self.words.encode(text, add_special_tokens=False)[: options["max_new_tokens"]]
            done = "stop" if text.endswith("<|im_end|>") else "length"
            groups.append([Rollout(ids, [True] * len(ids), [], done, list(prompt), text) for _ in range(num_samples)])
        return groups


def test_a_template_of_another_kind_gets_results_in_its_own_form(monkeypatch):
    from test_any_model import own_tokenizer
    from trl.chat_template_utils import qwen2_5_chat_template

    from nanochat_hf.generation import own_tools
    from nanochat_hf.generation.chat_format import ChatFormat

    words = own_tokenizer(qwen2_5_chat_template)
    form = ChatFormat(words)
    assert form.reads_calls
    prompt = form.prompt([{"role": "user", "content": "What is 12*3?"}], tools=True)
    assert '"name": "calculator"' in words.decode(prompt)
    call = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "12*3"}}\n</tool_call><|im_end|>'
    script = Script(words, [call, "It is 5.<|im_end|>", "It is 36.<|im_end|>"])
    monkeypatch.setattr(own_tools, "generate_with_tools", script)
    [[first], [second]] = own_tools.generate_with_own_tools(
        None, form, [prompt, prompt], max_new_tokens=400, context_length=4096
    )
    assert script.seen[1][:2] == (1, 1), "only the answer with a call goes on"
    assert (first.text, first.finish_reason) == ("It is 36.", "stop") and second.text == "It is 5."
    forced = [token for token, chosen in zip(first.token_ids, first.sampled, strict=True) if not chosen]
    expected = "\n<|im_start|>user\n<tool_response>\n36\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    assert words.decode(forced) == expected
    # The whole is what the template writes for the conversation.
    messages = [
        {"role": "user", "content": "What is 12*3?"},
        {
            "role": "assistant",
            "content": [
                {"type": "python", "text": "12*3"},
                {"type": "python_output", "text": "36"},
                {"type": "text", "text": "It is 36."},
            ],
        },
    ]
    ids, _ = form.conversation(messages)
    assert words.decode(ids).strip() == words.decode(first.prompt_ids + first.token_ids)


@pytest.mark.parametrize("limited_by", ["the turn", "the context"])
def test_a_turn_of_another_kind_ends_at_its_limit(monkeypatch, limited_by):
    from test_any_model import own_tokenizer
    from trl.chat_template_utils import qwen2_5_chat_template

    from nanochat_hf.generation import own_tools
    from nanochat_hf.generation.chat_format import ChatFormat

    words = own_tokenizer(qwen2_5_chat_template)
    form = ChatFormat(words)
    call = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "12*3"}}\n</tool_call><|im_end|>'
    length = len(words.encode(call, add_special_tokens=False))
    monkeypatch.setattr(own_tools, "generate_with_tools", Script(words, [call]))
    options = {"max_new_tokens": length + 5, "context_length": 4096}
    if limited_by == "the context":
        options = {"max_new_tokens": 4000, "context_length": 2 + length + 5}
    [[rollout]] = own_tools.generate_with_own_tools(None, form, [[1, 2]], **options)
    assert len(rollout.token_ids) == length and all(rollout.sampled) and rollout.finish_reason == "length"


def test_rl_runs_on_a_llama_with_tools_of_its_own(tmp_path):
    """The whole stage; such a random model calls nothing, its rewards are what the task says."""
    from test_any_model import own_model
    from trl.chat_template_utils import qwen2_5_chat_template

    base = own_model(tmp_path / "base", qwen2_5_chat_template, max_position_embeddings=4096)
    options = {"model": base, "output_dir": tmp_path / "out", "tasks": "microworld-problems@8", "num_iterations": 2}
    options |= {"val_tasks": "microworld-problems@2", "val_samples": 2, "prompts_per_step": 2, "num_generations": 2}
    options |= {"max_new_tokens": 8, "save_every": 0, "eval_every": 2}
    run_stage("rl", *(word for name, value in options.items() for word in (f"--{name}", value)))
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["metrics"]["val_pass@1/microworld-problems"] == 0.0
    assert len([row for row in run["history"] if "reward" in row]) == 2
