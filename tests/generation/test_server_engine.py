"""The generation behind the server, with a model that follows a script."""

import asyncio
import json
import math
import random

import pytest
import torch

from nanochat_hf.generation.row_sampling import RowSettings
from nanochat_hf.generation.tool_loop import decode_exactly
from nanochat_hf.serving.engine import Busy, Engine, EngineError, Job, called_function
from nanochat_hf.serving.openai_api import collect
from nanochat_hf.tools.calculator import calculate

CALL, CALL_END, OUTPUT, OUTPUT_END = range(261, 265)
END = 260
GREEDY = [RowSettings(temperature=0)]


def ids(tokenizer, words):
    return tokenizer.encode(words, add_special_tokens=False)


def calculating(scripted, tokenizer):
    """Says "So ", calls the calculator with 12*3, says "36!"."""
    said = [0, *ids(tokenizer, "So "), CALL, *ids(tokenizer, "12*3"), CALL_END, 0, 0, 0, 0]
    return scripted({99: [*said, *ids(tokenizer, "36!"), END]})


def saying(scripted, tokenizer, text):
    return scripted({99: [0, *ids(tokenizer, text), END]})


def run(model, tokenizer, work, **options):
    """Runs `work(engine)` in an event loop, with a started engine."""

    async def main():
        engine = Engine(model, tokenizer, **options)
        engine.start()
        try:
            return await asyncio.wait_for(work(engine), 60)
        finally:
            engine.stop()

    return asyncio.run(main())


def answers(model, tokenizer, **fields):
    job = Job(**{"prompt": [99, 3], "max_tokens": 100, "settings": GREEDY, "chat": True, **fields})
    return run(model, tokenizer, lambda engine: collect(engine.submit(job)))


def test_the_calculator_answers_and_the_client_sees_text(scripted, tokenizer):
    async def pieces(engine):
        job = Job([99, 3], 100, GREEDY, tool=calculate, chat=True)
        return [event async for event in engine.submit(job).events()]

    events = run(calculating(scripted, tokenizer), tokenizer, pieces)
    text = "".join(text for event in events for _, kind, text in event.pieces if kind == "text")
    assert text == "So 36!" and sum(bool(event.pieces) for event in events) > 5
    assert [event.score.token for event in events][-5:] == [OUTPUT_END, *ids(tokenizer, "36!"), END]
    assert events[-1].finish_reason == "stop" and len(events) == 17
    (answer,) = answers(calculating(scripted, tokenizer), tokenizer, tool=calculate)
    assert answer.text == "So 36!" and answer.finish_reason == "stop"
    assert answer.parts() == [
        {"type": "text", "text": "So "},
        {"type": "python", "text": "12*3"},
        {"type": "python_output", "text": "36"},
        {"type": "text", "text": "36!"},
    ]


@pytest.mark.parametrize(
    "extra",
    [{}, {"stop": ["36"]}, {"settings": [RowSettings(0, presence_penalty=1.5, repetition_penalty=1.1)]}],
    ids=["plain", "stop", "penalties"],
)
def test_a_call_of_the_clients_tool_ends_the_turn(extra, scripted, tokenizer):
    options = {"tool": calculate, "client_tools": frozenset({"calculator"}), **extra}
    (answer,) = answers(calculating(scripted, tokenizer), tokenizer, **options)
    assert (answer.text, answer.call(), answer.finish_reason) == ("So ", "12*3", "tool_calls")
    (other,) = answers(calculating(scripted, tokenizer), tokenizer, tool=calculate, client_tools=frozenset({"search"}))
    assert other.text == "So 36!"  # the client has other tools: the calculator answers


@pytest.mark.parametrize(
    "settings",
    [RowSettings(0, frequency_penalty=0.1), RowSettings(0, bias={0: 1.0}), RowSettings(0.1, top_k=1, min_p=0.1)],
    ids=str,
)
def test_the_calculator_stays_on_whatever_the_sampling(settings, scripted, tokenizer):
    (answer,) = answers(calculating(scripted, tokenizer), tokenizer, tool=calculate, settings=[settings], stop=["@"])
    assert answer.text == "So 36!" and len(answer.pieces) == 4


def test_calls_in_both_forms_of_the_template():
    assert called_function("12*3") == ("calculator", '{"expression": "12*3"}')
    assert called_function('{"name": "search", "arguments": {"q": "é"}}') == ("search", '{"q": "é"}')
    for no_json in (r'{"q": "\ud800"}', '{"q": NaN}', '{"q": [1e999]}'):
        call = f'{{"name": "search", "arguments": {no_json}}}'
        name, arguments = called_function(call)
        assert name == "calculator" and json.loads(arguments) == {"expression": call}
    assert called_function('{"name": 5}')[0] == called_function("[1]")[0] == called_function("5")[0] == "calculator"


def test_forced_and_forbidden_calls(scripted, tokenizer):
    model = scripted({99: [0, *ids(tokenizer, "x12*3"), CALL_END, END]})  # the forced token stands for the x
    job = {"client_tools": frozenset({"calculator"}), "begin": [[CALL]]}
    (answer,) = answers(model, tokenizer, **job)
    assert (answer.call(), answer.finish_reason, answer.text) == ("12*3", "tool_calls", "")
    forbidden = [RowSettings(0, bias={CALL: -math.inf})]
    (answer,) = answers(calculating(scripted, tokenizer), tokenizer, settings=forbidden)
    assert all(kind == "text" for _, kind, _ in answer.pieces)


def begins(tokenizer, *names):
    return [[CALL, *ids(tokenizer, f'{{"name": "{name}", "arguments": {{')] for name in names]


@pytest.mark.parametrize(
    ("says", "called"),
    [("look", "look"), ("search", "search"), ("weekday", "look"), ("12*3", "look"), ("lookaround", "look")],
)
def test_a_required_call_is_one_of_those_offered(says, called, scripted, tokenizer):
    """Where the model says something else, it gets the likeliest token that is allowed: the first of equal ones."""
    written = f'{{"name": "{says}", "arguments": {{' if says.isalpha() else says
    (begin,) = begins(tokenizer, called)
    script = [CALL, *ids(tokenizer, written.ljust(len(begin)))][: len(begin)]
    model = scripted({99: [0, *script, *ids(tokenizer, '"q": 1}}'), CALL_END, END]})
    offered = {"client_tools": frozenset({"search", "look"}), "begin": begins(tokenizer, "search", "look")}
    (answer,) = answers(model, tokenizer, tool=calculate, **offered)
    assert called_function(answer.call()) == (called, '{"q": 1}') and answer.finish_reason == "tool_calls"


def test_a_required_call_may_be_the_calculators_if_it_is_offered(scripted, tokenizer):
    job = {"client_tools": frozenset({"search", "calculator"}), "begin": [[CALL], *begins(tokenizer, "search")]}
    calls = {99: [0, CALL, *ids(tokenizer, "12*3"), CALL_END, END]}
    (answer,) = answers(scripted(calls), tokenizer, **job)
    assert (answer.call(), answer.finish_reason) == ("12*3", "tool_calls")
    calls = {99: [0, CALL, *ids(tokenizer, '{"name": "search", "arguments": {}}'), CALL_END, END]}
    (answer,) = answers(scripted(calls), tokenizer, **job)
    assert called_function(answer.call()) == ("search", "{}")


def test_an_answer_that_fails_ends_no_other(scripted, tokenizer):
    def broken(call):
        raise RuntimeError("no network")

    model = scripted(
        {99: calculating(scripted, tokenizer).scripts[99], 98: [0, *ids(tokenizer, "to the end " * 5), END]}
    )

    async def work(engine):
        failing = [Job([99, 3], 100, GREEDY * 2, tool=broken, chat=True), Job([98, 3], 100, GREEDY, chat=True)]
        failed, other = engine.submit_all(failing)
        with pytest.raises(EngineError, match="no network"):
            await collect(failed)
        (answer,) = await collect(other)
        assert engine.load() == (0, 0)
        return answer.text

    assert run(model, tokenizer, work) == "to the end " * 5


@pytest.mark.parametrize("settings", [{"temperature": 1e-310}, {"top_k": 5}, {"top_p": 0.5}], ids=str)
def test_extreme_sampling_ends_no_answer(settings, model, tokenizer):
    extreme = [RowSettings(**settings, repetition_penalty=1e-40), RowSettings(**settings)]
    extreme.append(RowSettings(**settings, bias=dict.fromkeys(range(320), -math.inf)))

    async def work(engine):
        jobs = [Job([99, 3], 20, [each]) for each in (*extreme, RowSettings(0))]
        return [len(answer.scores) for ticket in engine.submit_all(jobs) for answer in await collect(ticket)]

    assert all(run(model, tokenizer, work))


@pytest.mark.parametrize("stops", [["b c"], ["zzz", "c", "b c d"], ["é b c"], [" c d", "b c"]], ids=str)
def test_a_stop_text_is_not_part_of_the_answer(stops, scripted, tokenizer):
    said = "a é b c d"
    (answer,) = answers(saying(scripted, tokenizer, said), tokenizer, stop=stops)
    assert answer.finish_reason == "stop" and answer.stop in stops
    assert said.startswith(answer.text + answer.stop)
    assert not any(stop in answer.text for stop in stops)


def test_what_only_looks_like_a_stop_text_arrives_whole(scripted, tokenizer):
    said = "aab aabaa aab\n日本語 aa"
    for stops in (["aabb"], ["aac", "baab"], ["語 aaa"]):
        (answer,) = answers(saying(scripted, tokenizer, said), tokenizer, stop=stops)
        assert answer.text == said and answer.finish_reason == "stop" and answer.stop is None


def test_every_character_arrives_once_and_whole(scripted, tokenizer):
    said = "日本語 é 👩‍👩‍👧‍👦 naïve \u200b|x|"

    async def pieces(engine):
        return [event async for event in engine.submit(Job([99, 3], 100, GREEDY)).events()]

    events = run(saying(scripted, tokenizer, said), tokenizer, pieces)
    texts = [text for event in events for _, _, text in event.pieces]
    assert "".join(texts) == said and not any("\ufffd" in text for text in texts)
    broken = scripted({99: [0, 65, *ids(tokenizer, "é")[:1], END]})
    (answer,) = answers(broken, tokenizer)
    assert answer.text == decode_exactly(tokenizer, [65, ids(tokenizer, "é")[0]])  # half a character, at the end


def test_many_requests_share_a_batch_and_none_gets_anothers_answer(scripted, tokenizer):
    generator = random.Random(0)
    scripts, wanted = {}, {}
    for first in range(1, 41):
        words = "".join(generator.choices("abcdefgh ", k=generator.randrange(1, 40)))
        scripts[first], wanted[first] = [0, *ids(tokenizer, words), END], words

    async def work(engine):
        jobs = [Job([first, 3], 100, GREEDY * generator.choice([1, 1, 3]), chat=True) for first in wanted]
        groups = await asyncio.gather(*(collect(engine.submit(job)) for job in jobs))
        assert engine.load() == (0, 0)
        return {job.prompt[0]: {answer.text for answer in group} for job, group in zip(jobs, groups, strict=True)}

    assert run(scripted(scripts), tokenizer, work, max_batch=5) == {first: {text} for first, text in wanted.items()}


def test_a_failure_reaches_the_client_and_the_engine_goes_on(scripted, tokenizer):
    model = saying(scripted, tokenizer, "fine")

    async def work(engine):
        with pytest.raises(EngineError, match="98"):
            await collect(engine.submit(Job([98, 3], 10, GREEDY)))  # the model knows no script for this prompt
        (answer,) = await collect(engine.submit(Job([99, 3], 10, GREEDY)))
        return answer.text

    assert run(model, tokenizer, work) == "fine"


def test_a_request_that_nobody_waits_for_frees_its_place(scripted, tokenizer):
    model = scripted({99: [0] + [65] * 200, 98: [0, *ids(tokenizer, "B"), END]})

    async def work(engine):
        long = engine.submit(Job([99, 3], 200, GREEDY))
        waiting = engine.submit(Job([98, 3], 200, GREEDY))
        async for _ in long.events():
            break
        (answer,) = await collect(waiting)
        return answer.text, engine.metrics.text()

    text, metrics = run(model, tokenizer, work, max_batch=1)
    assert text == "B" and len(model.seen) < 150
    assert "nanochat_requests_cancelled_total 1" in metrics


def test_a_full_queue_refuses_and_says_when_to_come_back(scripted, tokenizer):
    model = scripted({99: [0] + [65] * 60, 98: [0, *ids(tokenizer, "B"), END]})

    async def work(engine):
        long = engine.submit(Job([99, 3], 60, GREEDY))
        events = long.events()
        await anext(events)  # it is being written: nothing waits
        waiting = engine.submit_all([Job([98, 3], 60, GREEDY) for _ in range(2)])
        for refused in (engine.check_room, lambda: engine.submit(Job([98, 3], 60, GREEDY))):
            with pytest.raises(Busy, match="2 requests wait already") as busy:
                refused()
            assert busy.value.retry_after == 1
        await events.aclose()  # its client goes away
        assert [answer.text for ticket in waiting for answer in await collect(ticket)] == ["B", "B"]
        (answer,) = await collect(engine.submit(Job([98, 3], 60, GREEDY)))
        return answer.text

    assert run(model, tokenizer, work, max_batch=1, max_waiting=2) == "B"


def test_stopping_finishes_what_was_submitted(scripted, tokenizer):
    model = saying(scripted, tokenizer, "to the end")

    async def work():
        engine = Engine(model, tokenizer, max_batch=1)
        engine.start()
        tickets = [engine.submit(Job([99, 3], 50, GREEDY)) for _ in range(3)]
        await asyncio.to_thread(engine.stop)
        with pytest.raises(EngineError, match="shutting down"):
            engine.submit(Job([99, 3], 50, GREEDY))
        return [answer.text for ticket in tickets for answer in await collect(ticket)]

    assert asyncio.run(work()) == ["to the end"] * 3


def test_scores_are_the_models_log_probabilities(model, tokenizer):
    """Of the prompt and of the answer, before temperature, penalties and biases."""
    prompt = ids(tokenizer, "Some words.")
    settings = [RowSettings(0.7, presence_penalty=2.0, bias={65: 5.0}, seed=1)]

    async def work(engine):
        ticket = engine.submit(Job(prompt, 12, settings, logprobs=3, prompt_logprobs=2))
        (answer,) = await collect(ticket)
        return ticket.prompt_scores, [score for score, _ in answer.scores]

    read, written = run(model, tokenizer, work)
    tokens = [score.token for score in (*read, *written)]
    assert tokens[: len(prompt)] == prompt and len(tokens) == len(prompt) + 12
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    assert read[0].logprob is None and not read[0].top
    for place, score in enumerate((*read, *written)[1:]):
        assert score.logprob == pytest.approx(float(expected[place, score.token]), abs=1e-4)
        values, best = expected[place].topk(len(score.top))
        assert len(score.top) == (2 if place + 1 < len(prompt) else 3)
        assert [token for token, _ in score.top] == best.tolist()
        assert [value for _, value in score.top] == pytest.approx(values.tolist(), abs=1e-4)
