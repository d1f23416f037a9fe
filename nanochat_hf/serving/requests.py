"""What a request may contain, and what it asks of the engine."""

import json
import math
from dataclasses import replace
from typing import Any

from nanochat_hf.generation.prompts import encode_as_text
from nanochat_hf.generation.row_sampling import RowSettings
from nanochat_hf.serving.engine import Engine, Job
from nanochat_hf.serving.fields import BadRequest, Fields, check_text, shown
from nanochat_hf.tools.registry import json_text, run_call

CHAT_TOKENS = 1024  # of an answer, where the request does not say
COMPLETION_TOKENS = 16  # OpenAI's default for completions
MOST_ROWS = 128  # answers per request
MOST_STOPS = 16
MOST_TOOLS = 128
LONGEST_NAME = 64  # characters of a function's name, as OpenAI
MOST_LOGPROBS = 20
# Fields that describe a request and change nothing in any answer.
DESCRIPTIONS = ("model", "user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
NO_GRAMMAR = "this server cannot force a format; ask for it in the prompt and check the answer"
TEXT_ONLY = "the model reads and writes text only"


def read_sampling(fields: Fields, engine: Engine, rows: int = 1) -> RowSettings:
    """Reads the sampling settings that chats, completions and responses share.

    What the request does not name is as in the checkpoint's generation configuration, which is greedy in checkpoints
    of this project. A request for several answers, or for a filter of samples, samples at temperature 1.

    Args:
        rows: how many answers are wanted.

    Raises:
        BadRequest: a setting is out of range; the text names it.
    """
    defaults, filters = engine.defaults, [fields.given.get(name) for name in ("top_k", "top_p", "min_p", "seed")]
    samples = rows > 1 or any(each is not None for each in filters)
    usual = defaults.temperature or (1.0 if samples else 0.0)
    penalty = "between -2 and 2"
    bias = fields.take("logit_bias", {})
    if not isinstance(bias, dict):
        raise fields.fail("logit_bias", "an object of token ids with numbers between -100 and 100")
    vocabulary = engine.model.config.get_text_config().vocab_size
    biases = {_token(token, vocabulary): _bias(token, value) for token, value in bias.items()}
    if list(biases.values()).count(-math.inf) == vocabulary:
        raise BadRequest("logit_bias forbids every token: leave out some", "logit_bias")
    return RowSettings(
        temperature=fields.number("temperature", usual, 0, 10, "between 0 (the likeliest token) and 10"),
        top_k=min(fields.integer("top_k", defaults.top_k, 0) or 0, vocabulary) or None,
        top_p=fields.number("top_p", defaults.top_p, 0, 1, "above 0 and at most 1", above=True),
        min_p=fields.number("min_p", defaults.min_p, 0, 1, "between 0 and 1"),
        frequency_penalty=fields.number("frequency_penalty", 0.0, -2, 2, penalty),
        presence_penalty=fields.number("presence_penalty", 0.0, -2, 2, penalty),
        repetition_penalty=fields.number(
            "repetition_penalty", defaults.repetition_penalty, 0, 100, "above 0 and at most 100", above=True
        ),
        bias=biases,
        seed=fields.integer("seed", None),
    )


def _token(name: str, vocabulary: int) -> int:
    if not (name.isascii() and name.isdigit() and len(name) < 10) or int(name) >= vocabulary:
        raise BadRequest(
            f"logit_bias must have token ids below {vocabulary} as names, not {shown(name)}", "logit_bias"
        )
    return int(name)


def _bias(token: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -100 <= value <= 100:
        raise BadRequest(
            f"logit_bias[{token}] must be a number between -100 and 100, not {shown(value)}", "logit_bias"
        )
    return -math.inf if value == -100 else float(value)  # OpenAI: -100 is a ban


def rows_of(settings: RowSettings, number: int) -> list[RowSettings]:
    """Returns the settings of several answers to one prompt: with a seed, each has random numbers of its own."""
    if settings.seed is None or number == 1:
        return [settings] * number
    return [replace(settings, seed=f"{settings.seed}/{index}") for index in range(number)]


def fit(job: Job, engine: Engine) -> Job:
    """Shortens the answer to what fits in the context.

    Raises:
        BadRequest: the prompt is empty, or fills the whole context.
    """
    length, context = len(job.prompt), engine.context_length
    if not length:
        raise BadRequest("the prompt has no tokens", "prompt")
    if length > context or (length == context and job.max_tokens):
        raise too_long(length, context)
    return replace(job, max_tokens=min(job.max_tokens, context - length))


def too_long(length: int | str, context: int) -> BadRequest:
    """The error of a prompt that does not fit."""
    return BadRequest(
        f"the prompt has {length} tokens, and the model reads {context}: please shorten it",
        "prompt",
        code="context_length_exceeded",
    )


# -- chats


def chat_job(fields: Fields, engine: Engine) -> tuple[Job, list[dict[str, Any]]]:
    """Reads a chat request, all but its prompt's tokens.

    Returns:
        The job, with an empty prompt, and the messages as the chat template takes them.
    """
    messages = read_messages(fields.take("messages"))
    number = fields.integer("n", 1, 1, MOST_ROWS)
    settings = read_sampling(fields, engine, number)
    max_tokens = fields.integer("max_completion_tokens", None, 1) or fields.integer("max_tokens", None, 1)
    fields.integer("max_tokens", None, 1)
    with_scores = fields.flag("logprobs")
    top = fields.integer("top_logprobs", 0, 0, MOST_LOGPROBS)
    if top and not with_scores:
        raise BadRequest("top_logprobs needs logprobs to be true", "top_logprobs")
    fields.refuse(NO_GRAMMAR, [{"type": "text"}], "response_format")
    fields.refuse(TEXT_ONLY, [["text"]], "modalities", "audio")
    fields.refuse("the answer cannot follow a given text", (), "prediction")
    fields.refuse("the model has no separate reasoning", ["none"], "reasoning_effort")
    fields.refuse("the model has one style of answers", ["medium"], "verbosity")
    fields.refuse("the server searches nothing", (), "web_search_options")
    fields.refuse("send tools and tool_choice instead", (), "functions", "function_call")
    fields.refuse("the server stores nothing", [False], "store")
    fields.refuse("there is one tier", ["auto", "default"], "service_tier")
    fields.refuse("send temperature, top_p, top_k and max_tokens instead", (), "generation_config")
    job = Job(
        prompt=[],
        max_tokens=max_tokens or CHAT_TOKENS,
        settings=rows_of(settings, number),
        stop=fields.texts("stop", MOST_STOPS),
        chat=True,
        logprobs=top if with_scores else None,
    )
    return read_tools(fields, job, engine), messages


def read_tools(fields: Fields, job: Job, engine: Engine) -> Job:
    """Reads `tools` and `tool_choice`.

    Calls of the client's tools end the turn. The tools of this project answer all other calls inside the turn.
    """
    tools, control = fields.objects("tools"), engine.control
    if len(tools) > MOST_TOOLS:
        raise BadRequest(f"tools may hold {MOST_TOOLS} functions, not {len(tools)}", "tools")
    names, begin = [], list[list[int]]()
    for index, tool in enumerate(tools):
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, dict) else None
        is_named = isinstance(name, str) and 0 < len(name) <= LONGEST_NAME
        if tool.get("type", "function") != "function" or not is_named:
            raise BadRequest(
                f"tools[{index}] must be a function with a name of up to {LONGEST_NAME} characters, not {shown(tool)}",
                "tools",
            )
        try:
            json_text(tool)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"tools[{index}] cannot be written as JSON: {error}", "tools") from None
        names.append(name)
    fields.flag("parallel_tool_calls", True)  # a turn ends at its first call, so there never are two
    if control.call_start is None:
        if tools:
            raise BadRequest("tools is not supported: this model has no tokens for calls", "tools", code="unsupported")
        fields.refuse("this model has no tokens for calls", ["none", "auto"], "tool_choice")
        return job
    choice = fields.take("tool_choice", "auto")
    if isinstance(choice, dict):
        function = choice.get("function", choice)
        choice = function.get("name") if isinstance(function, dict) else None
        if choice not in names:
            raise fields.fail(
                "tool_choice", f"none, auto, required, or one of the tools ({', '.join(names) or 'none'})"
            )
        begin = [_begin_call(choice, engine)]
    elif choice == "none":
        forbidden = {control.call_start: -math.inf}
        return replace(job, settings=[replace(each, bias={**each.bias, **forbidden}) for each in job.settings])
    elif choice == "required":
        if not names:
            raise BadRequest("tool_choice is required, but tools names none", "tool_choice")
        begin = [_begin_call(name, engine) for name in names]
    elif choice != "auto":
        raise fields.fail("tool_choice", "none, auto, required, or one of the tools")
    return replace(job, client_tools=frozenset(names), tool=run_call, begin=begin)


def _begin_call(name: str, engine: Engine) -> list[int]:
    """The tokens that a call of this function begins with."""
    start = [engine.control.call_start]
    if name == "calculator":
        return start
    # The form in which the chat template writes calls of other functions.
    return start + encode_as_text(engine.tokenizer, json.dumps({"name": name, "arguments": {}})[:-2])


ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
# What clients send back of an assistant's message: nothing that the model reads.
MESSAGE_EXTRAS = ("name", "tool_call_id", "refusal", "annotations", "reasoning", "reasoning_content")


def read_messages(messages: Any, name: str = "messages") -> list[dict[str, Any]]:
    """Returns the messages as the chat template takes them.

    Args:
        name: the field that holds them, for errors.

    Raises:
        BadRequest: they cannot be rendered; the text names the message.
    """
    if not isinstance(messages, list) or not messages:
        raise BadRequest(f"{name} must be a list of at least one message", name)
    return [_read_message(message, f"{name}[{index}]") for index, message in enumerate(messages)]


def _read_message(message: Any, name: str) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str) or message["role"] not in ROLES:
        raise BadRequest(f"{name} must be an object whose role is one of {', '.join(ROLES)}", name)
    fields = Fields(message, name + ".")
    role = ROLES[fields.take("role")]
    fields.refuse(TEXT_ONLY, (), "audio")
    fields.refuse("send tool_calls instead", (), "function_call")
    calls = [
        _read_call(call, f"{name}.tool_calls[{index}]") for index, call in enumerate(fields.objects("tool_calls"))
    ]
    parts = fields.objects("parts")
    read: dict[str, Any] = {"role": role}
    if parts and role == "assistant":  # this server's own form: text, calls and results in order
        fields.take("content")
        read["content"] = [_read_part(part, f"{name}.parts[{index}]") for index, part in enumerate(parts)]
        if calls and read["content"][-1]["type"] == "python":  # the call that ended the answer is in `tool_calls`, too
            read["content"].pop()
    elif "content" in fields.given:
        read["content"] = _read_content(fields.take("content"), role, f"{name}.content")
    elif calls:
        read["content"] = ""
    else:
        raise BadRequest(f"{name}.content must be text, or a list of parts of type text, not null", f"{name}.content")
    if calls:
        if role != "assistant":
            raise BadRequest(f"{name}.tool_calls can only stand in a message of the assistant", f"{name}.tool_calls")
        read["tool_calls"] = calls
    fields.done(MESSAGE_EXTRAS)
    return read


def _read_content(content: Any, role: str, name: str) -> Any:
    if isinstance(content, str):
        check_text(content, name)
        return content
    if not isinstance(content, list):
        raise BadRequest(f"{name} must be text, or a list of parts of type text, not {shown(content)}", name)
    parts = [_read_part(part, f"{name}[{index}]") for index, part in enumerate(content)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    if role != "assistant":
        raise BadRequest(f"{name} must be text, or a list of parts of type text", name)
    return parts


TEXT_TYPES = ("text", "input_text", "output_text", "refusal")


def _read_part(part: Any, name: str) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, dict) else None
    if kind not in (*TEXT_TYPES, "python", "python_output") or not isinstance(text, str):
        raise BadRequest(f"{name} must be a part of type text: {TEXT_ONLY}", name)
    check_text(text, name)
    return {"type": "text" if kind in TEXT_TYPES else kind, "text": text}


def _read_call(call: Any, name: str) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRequest(f"{name} must have a function with a name", name)
    arguments = function.get("arguments", "{}")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, dict):
        raise BadRequest(f"{name}.function.arguments must be text that holds a JSON object", name)
    check_text(function["name"] + json.dumps(arguments, ensure_ascii=False), name)
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


# -- completions


def completion_jobs(fields: Fields, engine: Engine) -> tuple[Job, list[Any], dict[str, Any]]:
    """Reads a completion request, all but the tokens of its prompts.

    Returns:
        The job of each prompt, with an empty prompt; the prompts, each a text or a list of token ids; and the form of
        the answer: `echo`, `number`, `best_of` and `count`, the log-probabilities per token.
    """
    prompts = read_prompts(fields.take("prompt"), engine)
    number = fields.integer("n", 1, 1, MOST_ROWS)
    best_of = fields.integer("best_of", number, 1, MOST_ROWS)
    settings = read_sampling(fields, engine, best_of)
    if best_of < number:
        raise BadRequest(f"best_of must be at least n ({number}), not {best_of}", "best_of")
    if best_of * len(prompts) > 4 * MOST_ROWS:
        raise BadRequest(f"a request may ask for {4 * MOST_ROWS} answers, not {best_of * len(prompts)}", "prompt")
    max_tokens = fields.integer("max_tokens", COMPLETION_TOKENS, 0)
    count = fields.integer("logprobs", None, 0, MOST_LOGPROBS)
    echo = fields.flag("echo")
    fields.refuse("the model only writes on; put the text into the prompt", (), "suffix")
    fields.refuse(NO_GRAMMAR, [{"type": "text"}], "response_format")
    fields.refuse("send temperature, top_p, top_k and max_tokens instead", (), "generation_config")
    job = Job(
        prompt=[],
        max_tokens=max_tokens,
        settings=rows_of(settings, best_of),
        stop=fields.texts("stop", MOST_STOPS),
        logprobs=0 if count is None and best_of > number else count,
        prompt_logprobs=count if echo else None,
    )
    form = {"echo": echo, "number": number, "best_of": best_of, "count": count}
    return job, prompts, form


def read_prompts(prompt: Any, engine: Engine) -> list[Any]:
    """Returns a request's prompts: it may be a text, a list of texts, token ids or a list of lists of them."""
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and _is_id(prompt[0])):
        prompt = [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise BadRequest("prompt must be text, token ids, or a list of texts or of lists of token ids", "prompt")
    for index, each in enumerate(prompt):
        if isinstance(each, str):
            check_text(each, f"prompt[{index}]")
        else:
            check_ids(each, f"prompt[{index}]", engine, "text or ")
    return prompt


def check_ids(ids: Any, name: str, engine: Engine, other: str = "") -> None:
    """Refuses what is no list of token ids of the model.

    Args:
        other: what else the field may hold.
    """
    vocabulary = engine.model.config.get_text_config().vocab_size
    if not isinstance(ids, list) or not all(_is_id(token) and 0 <= token < vocabulary for token in ids):
        raise BadRequest(f"{name} must be {other}a list of token ids below {vocabulary}", name)


def _is_id(token: Any) -> bool:
    return isinstance(token, int) and not isinstance(token, bool)
