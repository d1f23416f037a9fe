"""The page's API, its settings and its parts, without a browser."""

import re
from urllib.request import urlopen

import pytest
from started_server import ROOT, started

from nanochat_hf.page import command
from nanochat_hf.page.report_view import find_report, read_report
from nanochat_hf.page.safe_text import BREAK, code_block, code_span, message_markdown, original, safe_markdown
from nanochat_hf.page.token_view import token_html, token_infos
from nanochat_hf.page.views import chatbot_messages
from nanochat_hf.page.visits import Limits, Rate, check_message, read_messages, write_answer
from nanochat_hf.settings import UserError, run_main

APP = ROOT / "space" / "app.py"
PARTS = [
    {"type": "text", "text": "So "},
    {"type": "python", "text": "12*3"},
    {"type": "python_output", "text": "36"},
    {"type": "text", "text": "36 it is.\n#### 36"},
]


# ---- the API -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(trained_run, tmp_path_factory):
    from gradio_client import Client

    with started([APP, trained_run / "rl", "--device", "cpu"], tmp_path_factory.mktemp("log") / "page.log") as url:
        yield Client(url, verbose=False)


def test_answers_stream(client):
    job = client.submit("Petra has 58 books. Simon gives Petra 29 more. Petra buys 28 books. "
                        "How many books does Petra have now?", temperature=0.0, api_name="/chat")  # fmt: skip
    final = job.result(timeout=120)
    assert final.endswith("Answer: 115") and "⟨58+29 = 87⟩ books" in final
    assert job.outputs()[-1] == final


def test_too_long_messages_are_refused(client):
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match="8,000 are allowed"):
        client.predict("x" * 9000, api_name="/chat")
    with pytest.raises(AppError, match="too long"):
        client.predict("word " * 400, api_name="/chat")
    with pytest.raises(AppError, match="is empty"):
        client.predict(" ", api_name="/chat")
    with pytest.raises(AppError, match="temperature"):
        client.predict("x", temperature=-1, api_name="/chat")
    assert client.predict("How do you spell tosar?", temperature=0, api_name="/chat") == "t-o-s-a-r"  # still alive


@pytest.mark.parametrize(
    "name, value", [("temperature", "hot"), ("top_k", [1]), ("top_p", {}), ("max_new_tokens", None)]
)
def test_settings_that_are_no_numbers_are_named(client, name, value):
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match=f"{name} must be a number, not"):
        client.predict("x", **{name: value}, api_name="/chat")


def test_a_system_message_is_text_or_nothing(client):
    from gradio_client.exceptions import AppError

    ask = ("How do you spell tosar?",)
    assert client.predict(*ask, system=None, temperature=0, api_name="/chat") == "t-o-s-a-r"
    with pytest.raises(AppError, match="system message must be text"):
        client.predict(*ask, system=5, api_name="/chat")


def test_every_answer_carries_the_policy(client):
    with urlopen(client.src) as answer:
        policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http:" not in policy and "*" not in policy


# ---- text --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["<b>", "</p>", "<!-- x -->", "<?x", "[a](b)", "![a](b)", "[a][b]", "[a]: b", "http://x", "www.x.org", "a@b.org",
     "```mermaid", "~~~ mermaid", "\\href{x}{y}", "\\includegraphics{x}", "ftp://x", "<http://x>"],
)  # fmt: skip
def test_beginnings_are_split(text):
    assert BREAK in safe_markdown(text) and original(safe_markdown(text)) == text
    assert safe_markdown(safe_markdown(text)) == safe_markdown(text)


@pytest.mark.parametrize(
    "text", ["a < b", "3 <4", "**bold**", "`code`", "$$x^2$$", "| a | b |", "a[0] = 1", "<|bos|>"]
)
def test_other_text_is_left_alone(text):
    assert safe_markdown(text) == text


def test_programs_are_shown_as_programs():
    program = 'def double(x):\n    """Two times x."""\n    return 2 * x\n'
    assert message_markdown(program) == f"```python\n{program.strip()}\n```"
    assert message_markdown("defend the castle") == "defend the castle"
    assert code_block("a\n```\nb").startswith("````") and code_span("a`b") == "`` a`b ``"


# ---- the conversation --------------------------------------------------------------


def test_calls_are_boxes_and_nothing_is_read_back():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "⟨1 = 1⟩"},
        {"role": "assistant", "content": PARTS},
        {"role": "assistant", "content": "", "note": "stopped"},
    ]
    shown, owners = chatbot_messages(messages)
    assert owners == [1, 2, 2, 3]
    assert shown[0] == {"role": "user", "content": "⟨1 = 1⟩"}
    assert shown[1]["metadata"] == {"title": "Calculator: 12*3 = 36", "status": "done"}
    assert shown[2]["content"] == "So 36 it is.\n\n**Answer: 36**"
    assert shown[3]["content"] == "*(stopped)*"


def test_what_a_browser_sends_is_checked():
    limits = Limits(characters=10, messages=4)
    assert check_message("a\udcffb", limits) == "a\ufffdb"
    for wrong, complaint in (("", "empty"), (None, "empty"), ("x" * 11, "too long")):
        with pytest.raises(UserError, match=complaint):
            check_message(wrong, limits)
    for wrong in ("x", None, [5], [{"role": "user"}], [{"role": "user", "content": "x"}] * 5):
        with pytest.raises(UserError):
            read_messages(wrong, limits)
    message = {"role": "assistant", "content": "x", "note": "stopped", "other": 1}
    assert read_messages([message], limits) == [{"role": "assistant", "content": "x", "note": "stopped"}]
    assert read_messages([{**message, "note": "<img>"}], limits) == [{"role": "assistant", "content": "x"}]


def test_the_rate_is_each_visitors_own():
    rate = Rate(2)
    for now in (0, 1):
        rate.check("one", now)
    with pytest.raises(UserError, match="2 messages per minute. Please wait 59 seconds"):
        rate.check("one", 2)
    rate.check("other", 2)
    rate.check("one", 61)
    Rate(0).check("one")


def test_an_answer_that_takes_too_long_is_stopped():
    from pages_under_test import SayingModel

    model = SayingModel()
    *_, last = write_answer(model, [{"role": "user", "content": "slow"}], Limits(seconds=0.3))
    assert last["note"] == "seconds" and "tick 1" in last["content"] and model.running == 0


# ---- the token view ----------------------------------------------------------------


def test_tokens_are_the_answers_own(trained_run):
    import torch

    from nanochat_hf.chat import LocalModel, suggestions
    from nanochat_hf.tokenizer.template import render_conversation

    model = LocalModel(str(trained_run / "rl"), device="cpu")
    (problem,) = [one for one in suggestions(trained_run / "rl", 9) if one.task == "microworld-problems"]
    question = {"role": "user", "content": problem.question}
    *_, answer = model.answer([question], temperature=0.0, max_new_tokens=128)
    messages = [question, answer.message()]
    infos = token_infos(model.model, model.tokenizer, messages, model.context_length)
    ids, mask = render_conversation(model.tokenizer, [question, {"role": "assistant", "content": answer.content}])
    assert [info.token_id for info in infos] == ids
    assert [int(info.is_trained) for info in infos] == mask  # what training would teach
    assert [info.token_id for info in infos if not info.is_prompt] == answer.token_ids
    forced = "".join(info.text for info in infos if info.is_forced)
    assert forced == "<|output_start|>87<|output_end|><|output_start|>115<|output_end|>"
    assert {info.text for info in infos if info.is_control} >= {"<|bos|>", "<|python_start|>", "<|assistant_end|>"}
    with torch.inference_mode():
        logits = model.model(torch.tensor([ids])).logits[0].float()
    for place in (1, len(ids) // 2, len(ids) - 1):
        shares = logits[place - 1, : len(model.tokenizer)].softmax(-1)
        assert infos[place].probability == pytest.approx(float(shares[ids[place]]), abs=1e-6)
        best = infos[place].alternatives
        assert len(best) == 5 and best[0][1] == pytest.approx(float(shares.max()), abs=1e-6)
    assert infos[0].probability is None
    without = token_infos(model.model, model.tokenizer, [question, {"role": "assistant", "content": "t-o"}], 256)
    assert "".join(info.text for info in without if not info.is_prompt) == "t-o<|assistant_end|>"


@pytest.mark.parametrize("turns", [0, 3, 14])
def test_tokens_show_the_prompt_that_the_answer_had(trained_run, turns):
    """The system message, and the same cut of a long chat, whatever the settings say afterwards."""
    from nanochat_hf.chat import LocalModel, for_model
    from nanochat_hf.page.app import Page, Visits

    model = LocalModel(str(trained_run / "rl"), device="cpu")
    visits, read, shown = Visits(Page(model, "x"), lambda function: function), [], []

    def write(model, messages, limits, **sampling):
        read.append([for_model(message) for message in messages])
        return write_answer(model, messages, limits, **sampling)

    def infos(model, tokenizer, messages, context_length):
        shown.append([for_model(message) for message in messages])
        return token_infos(model, tokenizer, messages, context_length)

    visits.write, visits.infos = write, infos
    question = {"role": "user", "content": "How do you spell tosar?"}
    earlier = [question, {"role": "assistant", "content": "t-o-s-a-r"}] * turns
    conversation = {"id": "1", "messages": [*earlier, question]}
    for system in ("Be \ud800 brief.", ""):
        *_, (_, answered) = visits.answer(conversation, system, 0.0, 0, 1.0, 128)
        assert "tile" in visits.tokens(len(answered["messages"]) - 1, answered)
        assert shown[-1] == [*read[-1], {"role": "assistant", "content": answered["messages"][-1]["content"]}]
    assert (len(read[-1]) < len(earlier) + 1) == (turns == 14) and read[0][0]["content"] == "Be \ufffd brief."


def test_tiles_are_escaped():
    from nanochat_hf.page.token_view import TokenInfo

    hostile = "<img src=x onerror=y>\"'"
    shown = token_html([TokenInfo(1, hostile, False, False, False, True, 0.5, ((hostile, 0.5),))])
    assert "<img" not in shown and "onerror=y&gt;" in shown
    assert "no answer to show" in token_html([])


# ---- report and settings -----------------------------------------------------------


def test_a_report_is_cut_at_its_pictures(trained_run):
    path = find_report(trained_run / "rl")
    sections = read_report(path)
    assert [bool(section.picture) for section in sections] == [False, True, False]
    assert sections[1].caption == "Training loss" and sections[1].picture.name == "loss.png"
    assert find_report("user/model") is None


def test_a_missing_model_is_one_line(monkeypatch, capsys, tmp_path):
    for argv, complaint in (
        (["/no/such/model"], "no/such/model"),
        ([], "no model is named"),
        (["--url", "localhost"], "http://HOST:PORT"),
    ):
        with pytest.raises(SystemExit) as stop:
            run_main(lambda argv=argv: command.main(argv, tmp_path))
        assert stop.value.code == 2
        assert re.fullmatch(rf"error: .*{complaint}.*", capsys.readouterr().err.strip().splitlines()[-1])


def test_what_cannot_be_compared_or_has_no_effect_is_named_at_the_start(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for argv, complaint in (
        ([str(tmp_path), "--compare", f"{tmp_path}/empty"], "empty is not a checkpoint folder"),
        ([str(tmp_path), "--compare", f"{tmp_path}/none@v1"], "there is no folder"),
        (["--url", "http://x", "--compare", str(tmp_path), "--device", "cpu"], "--compare and --device would have no"),
        ([str(tmp_path), "--tools"], "--tools would have no effect here"),
    ):
        with pytest.raises(UserError, match=complaint):
            command.main(argv, tmp_path)


def test_settings_come_from_the_file_the_environment_and_the_command_line(monkeypatch, tmp_path):
    given = {"model": "from/file", "seconds": 5.0}
    assert command._parse([], given).model == "from/file"
    monkeypatch.setenv("NANOCHAT_MODEL", "from/environment")
    monkeypatch.setenv("NANOCHAT_SECONDS", "7")
    options = command._parse([], given)
    assert (options.model, options.seconds) == ("from/environment", 7)
    options = command._parse(["from/line", "--seconds", "9"], given)
    assert (options.model, options.seconds, options.per_minute) == ("from/line", 9, Limits().per_minute)
    monkeypatch.setenv("NANOCHAT_SECONDS", "soon")
    with pytest.raises(UserError, match="NANOCHAT_SECONDS: a number from 1 to 1,000,000,000 is expected"):
        command._parse([], given)
    (tmp_path / "space.json").write_text("{")
    with pytest.raises(UserError, match="space.json is damaged"):
        command._space_file(tmp_path)


def test_a_run_is_found_from_inside_its_stages_folder(trained_run, monkeypatch):
    monkeypatch.chdir(trained_run / "rl")
    page = command._page(command._parse([".", "--device", "cpu"], {}), {})
    assert page.title == f"{trained_run.name} · rl" and page.report == trained_run / "report.md"
    assert page.others["rl"]() is page.model


def test_a_folder_to_compare_may_have_an_at_sign(tmp_path):
    (tmp_path / "a@b").mkdir()
    options = command._parse(["some/model", "--compare", f"{tmp_path}/a@b", "user/model@v1"], {})
    loaders = command._others(options, None)
    called = [(one.args[0], one.keywords["revision"]) for one in list(loaders.values())[:2]]
    assert called == [(f"{tmp_path}/a@b", None), ("user/model", "v1")]


def test_the_folder_space_is_what_push_sends():
    from nanochat_hf.page.deploy import TEMPLATES

    for path in sorted(TEMPLATES.iterdir()):
        assert (ROOT / "space" / path.name).read_bytes() == path.read_bytes(), f"copy {path} to space/"
    assert {path.name for path in TEMPLATES.iterdir()} == {"app.py", "README.md", "requirements.txt"}


def test_requirements_are_pinned_as_in_the_lock():
    lock = dict(
        line.lower().split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line
    )
    pins = dict(line.split("==") for line in (ROOT / "space" / "requirements.txt").read_text().split())
    assert pins == {name: lock[name] for name in pins} and {"gradio", "torch", "transformers"} <= set(pins)
    assert f"sdk_version: {pins['gradio']}" in (ROOT / "space" / "README.md").read_text()


def test_a_page_for_a_server(monkeypatch):
    """With an address the page loads no model; its parts that need one are not there."""
    from nanochat_hf.page.app import build

    page = command._page(command._parse(["--url", "http://127.0.0.1:9"], {}), {})
    assert page.title == "127.0.0.1:9" and not page.others
    app = build(page)
    labels = {block.label for block in app.blocks.values() if hasattr(block, "label")}
    assert "Chat" in labels and not {"Compare", "Tokens", "Report"} & labels
