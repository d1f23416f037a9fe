"""The page in a real browser, as a visitor meets it.

With the variable PAGE_PICTURES the story also takes the pictures of docs/serving.md into that folder.
"""

import json
import os
import re
import time
from contextlib import contextmanager

import pytest
from pages_under_test import SayingModel, served, trap
from started_server import ROOT, started

pytestmark = pytest.mark.timeout(900)
MARK = ROOT / "nanochat_hf" / "page" / "static" / "mark.svg"
WAIT = 60_000  # milliseconds
HARMLESS = re.compile(r"LaTeX-incompatible|No character metrics")  # the formula library on U+2060, which shows nothing
NAMES = """() => [...document.querySelectorAll(
  "button, input, textarea, select, a[href], [role=button], [role=tab], [role=slider], [role=combobox]")]
  .filter((one) => one.checkVisibility() && one.getAttribute("aria-hidden") !== "true" && one.type !== "hidden")
  .filter((one) => !(one.getAttribute("aria-label") || one.title || one.textContent.trim() || one.placeholder
    || (one.getAttribute("aria-labelledby") && document.getElementById(one.getAttribute("aria-labelledby")))
    || (one.labels && [...one.labels].some((label) => label.textContent.trim()))))
  .map((one) => one.outerHTML.slice(0, 200))"""


@contextmanager
def visit(browser, address, **options):
    """Opens the page in a fresh browser profile; afterwards the console must be free of errors."""
    context = browser.new_context(**{"viewport": {"width": 1180, "height": 900}, **options})
    page = context.new_page()
    watch(page, address)
    try:
        yield page
    except Exception:
        print("the chat at the end:", *shown(page), sep="\n")
        raise
    else:
        errors = [text for text in page.problems if not HARMLESS.search(text)]
        assert not errors
        assert not page.strangers, "the page asked another server for something"
    finally:
        context.close()


def watch(page, address):
    page.problems, page.strangers = [], []
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith((address, "data:", "blob:")) else page.strangers.append(request.url)
        ),
    )
    page.goto(address)
    page.wait_for_selector("#message textarea", timeout=WAIT)
    page.wait_for_timeout(1000)  # until the script has named the controls


def say(page, text):
    page.fill("#message textarea", text)
    page.press("#message textarea", "Enter")


def shown(page):
    """The texts of the chat's messages, each once (Gradio nests elements of this class)."""
    return page.locator("#chat [data-testid=user], #chat [data-testid=bot]").all_inner_texts()


def notice(page, text):
    page.locator(".toast-body", has_text=text).wait_for(timeout=WAIT)
    # All at once: where one closes, or goes by itself, the numbers of the others change.
    page.locator(".toast-close").evaluate_all("buttons => buttons.forEach(button => button.click())")


def ready(page):
    """Waits until the answer is complete and the box takes the next message."""
    page.locator("#message button[aria-label=Stop], #message .stop-button").wait_for(state="hidden", timeout=WAIT)
    page.locator("#message .submit-button").wait_for(timeout=WAIT)


def picture(page, name, **options):
    folder = os.environ.get("PAGE_PICTURES")
    if folder:
        page.wait_for_timeout(400)
        page.screenshot(path=f"{folder}/{name}.png", **options)


# ---- with a trained model ----------------------------------------------------------


@pytest.fixture(scope="module")
def address(trained_run, tmp_path_factory):
    checkpoint = os.environ.get("PAGE_CHECKPOINT", trained_run / "rl")
    log = tmp_path_factory.mktemp("log") / "page.log"
    with started([ROOT / "space" / "app.py", checkpoint, "--device", "cpu"], log) as url:
        yield url
    assert "Traceback" not in log.read_text()


def test_a_visit(browser, address):
    """Open, a suggested question, its answer with tool boxes, retry, edit, undo, refusals, reload, second tab."""
    with visit(browser, address) as page:
        assert "rl" in page.title()
        icon = page.request.get(f"{address}/favicon.ico")
        assert icon.body() == MARK.read_bytes() and icon.headers["content-type"].startswith("image/svg+xml")
        page.get_by_role("button", name="Petra has 58 books").first.click()
        page.get_by_text("Answer: 115").wait_for(timeout=WAIT)
        ready(page)
        assert page.get_by_text("Calculator: 58+29 = 87").is_visible()
        box = page.get_by_text("Result: 87")
        assert not box.is_visible()  # folded
        page.get_by_text("Calculator: 58+29 = 87").click()
        box.wait_for()
        chat = page.locator("#chat").inner_text()
        assert "####" not in chat and "has 87 books" in chat and "8787" not in chat
        picture(page, "page-light")

        refused = {"": "is empty", "   ": "is empty", "x" * 9_000: "too long", "word " * 400: "too long"}
        before = shown(page)
        for text, complaint in refused.items():
            say(page, text)
            notice(page, complaint)
            assert page.input_value("#message textarea") == text and shown(page) == before

        say(page, "How do you spell tosar?")
        page.get_by_text("t-o-s-a-r").wait_for(timeout=WAIT)
        ready(page)
        before = len(shown(page))
        page.get_by_role("button", name="Retry").click()
        page.wait_for_timeout(300)
        ready(page)
        page.get_by_text("t-o-s-a-r").wait_for(timeout=WAIT)
        assert len(shown(page)) == before

        page.get_by_role("button", name="Edit").last.click()
        page.locator("#chat textarea").fill("  ")
        page.get_by_role("button", name="Submit").click()
        notice(page, "is empty")
        page.get_by_text("How do you spell tosar?").first.wait_for(timeout=WAIT)
        assert len(shown(page)) == before
        page.get_by_role("button", name="Edit").last.click()
        page.locator("#chat textarea").fill("Where do you find the town of Thornton?")
        page.get_by_role("button", name="Submit").click()
        page.get_by_text("Thornton lies on a hill.").wait_for(timeout=WAIT)
        ready(page)
        assert len(shown(page)) == before and "t-o-s-a-r" not in page.locator("#chat").inner_text()

        page.get_by_role("button", name="Undo").click()
        page.get_by_text("Thornton lies on a hill.").wait_for(state="detached", timeout=WAIT)
        assert page.input_value("#message textarea") == "Where do you find the town of Thornton?"
        page.press("#message textarea", "Enter")
        page.get_by_text("Thornton lies on a hill.").wait_for(timeout=WAIT)
        ready(page)
        page.wait_for_timeout(500)
        assert not page.evaluate(NAMES)

        page.reload()
        page.get_by_text("Thornton lies on a hill.").wait_for(timeout=WAIT)
        page.get_by_text("Answer: 115").wait_for(timeout=WAIT)

        second = page.context.new_page()  # another tab: a conversation of its own, the same list
        watch(second, address)
        assert not shown(second)
        say(second, "How do you spell tosar?")
        second.get_by_text("t-o-s-a-r").wait_for(timeout=WAIT)
        ready(second)
        second.wait_for_timeout(500)
        second.locator(".toggle-button").first.click()
        second.locator("#conversations label", has_text="Petra has 58").click()
        second.get_by_text("Thornton lies on a hill.").wait_for(timeout=WAIT)
        assert second.locator("#conversations label").count() == 2
        second.get_by_role("button", name="Delete this conversation").click()
        second.get_by_text("Thornton lies on a hill.").wait_for(state="detached", timeout=WAIT)
        second.wait_for_timeout(500)
        assert second.locator("#conversations label").count() == 1
        second.get_by_role("button", name="New conversation").click()
        assert not second.problems and not second.strangers


def test_the_token_view(browser, address, trained_run):
    with visit(browser, address) as page:
        page.get_by_role("button", name="Petra has 58 books").first.click()
        page.get_by_text("Answer: 115").wait_for(timeout=WAIT)
        ready(page)
        page.get_by_role("tab", name="Tokens").click()
        tiles = page.locator("#tokens .tiles .tile")
        tiles.first.wait_for(timeout=WAIT)
        assert page.locator("#tokens .tiles .control").count() >= 10
        forced = page.locator("#tokens .tiles .forced").all_inner_texts()
        assert "<|output_start|>" in forced[0] and any("<|output_end|>" in text for text in forced)
        assert not page.locator("#tokens .tiles .forced.trained").count()
        assert page.locator("#tokens .tiles .trained").count() > 10
        one = page.locator("#tokens .tiles .trained", has_text="python_start").first
        details = one.locator(".details")
        assert not details.is_visible()
        one.hover()
        details.wait_for()
        assert details.locator(".row").count() == 5 and "probability" in details.inner_text()
        picture(page, "page-tokens")
        page.mouse.move(0, 0)
        details.wait_for(state="hidden")
        one.focus()  # the same by keyboard
        details.wait_for()
        assert "probability" in one.get_attribute("aria-label")
        page.wait_for_timeout(500)
        assert not page.evaluate(NAMES)


def test_compare_report_and_settings(browser, address):
    with visit(browser, address, viewport={"width": 1180, "height": 1000}) as page:
        page.get_by_role("tab", name="Compare").click()
        page.get_by_role("button", name="Petra has 58 books").last.click()
        right = page.locator("#right-answer")
        right.get_by_text("Answer: 115").wait_for(timeout=WAIT)
        left = page.locator("#left-answer [data-testid=bot]").last
        left.wait_for(timeout=WAIT)
        page.wait_for_timeout(3000)
        assert "Answer: 115" not in left.inner_text()
        picture(page, "page-compare")
        page.fill("#compare-message textarea, #compare-message input", "")
        page.press("#compare-message textarea, #compare-message input", "Enter")
        notice(page, "is empty")

        page.get_by_role("tab", name="Report").click()
        plot = page.locator("#tabs img").first
        plot.wait_for(timeout=WAIT)
        assert plot.evaluate("(image) => image.naturalWidth") > 100
        assert page.locator("#tabs table").first.is_visible()

        page.get_by_role("tab", name="Chat").click()
        page.locator("#settings button", has_text="Settings").first.click()
        page.get_by_label("System message").fill("Use only one word.")
        assert page.get_by_text("Surprise (temperature)").is_visible()
        say(page, "How do you spell tosar?")
        page.locator("#chat [data-testid=bot]").last.wait_for(timeout=WAIT)
        ready(page)
        page.wait_for_timeout(500)
        assert not page.evaluate(NAMES)


def test_phone_and_dark(browser, address):
    with visit(browser, address, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True) as page:
        page.get_by_role("button", name="Petra has 58 books").first.tap()
        page.get_by_text("Answer: 115").wait_for(timeout=WAIT)
        ready(page)
        for tab in ("Chat", "Compare", "Tokens", "Chat"):
            page.get_by_role("tab", name=tab).click()
            page.wait_for_timeout(700)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390  # nothing sticks out
        picture(page, "page-phone")
        page.get_by_role("tab", name="Tokens").click()
        tile = page.locator("#tokens .tiles .trained").nth(5)
        tile.wait_for(timeout=WAIT)
        tile.tap()
        details = tile.locator(".details")
        details.wait_for()
        place = details.bounding_box()
        assert place["x"] >= 0 and place["x"] + place["width"] <= 390
    with visit(browser, address, color_scheme="dark") as page:
        page.get_by_role("button", name="Petra has 58 books").first.click()
        page.get_by_text("Answer: 115").wait_for(timeout=WAIT)
        ready(page)
        colours = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('h1')).color]"
        )
        back, front = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
        assert back < 150 < 500 < front
        picture(page, "page-dark")


def test_only_the_keyboard(browser, address):
    """The box has the focus, Enter sends, and Tab reaches the suggestions."""
    with visit(browser, address) as page:
        page.keyboard.type("How do you spell tosar?")
        page.keyboard.press("Enter")
        page.get_by_text("t-o-s-a-r").wait_for(timeout=WAIT)
        ready(page)
        page.focus("#message textarea")
        for _ in range(6):
            page.keyboard.press("Tab")
            if "Petra has 58" in page.evaluate("document.activeElement.textContent"):
                break
        page.keyboard.press("Enter")
        page.get_by_text("Answer: 115").wait_for(timeout=WAIT)


# ---- with a model that says what the test wants ------------------------------------

HOSTILE = """\
<b>bold</b> <script>document.title = "taken"; fetch("URL/script")</script>
<img src="URL/img" onerror="fetch('URL/onerror')">
![picture](URL/markdown) ![picture][ref] [link](URL/link) <URL/autolink> URL/bare <a href="URL/a">anchor</a>

[ref]: URL/reference "title"
<iframe src="URL/iframe"></iframe> <svg onload="fetch('URL/svg')"><image href="URL/svgimage"/></svg>
<form action="URL/form"><input type="submit" value="press me"></form> <video src="URL/video" autoplay></video>
<style>@import "URL/css"; body { background: url(URL/background) }</style>
<link rel="stylesheet" href="URL/stylesheet">
<meta http-equiv="refresh" content="0; url=URL/refresh"> <object data="URL/object"></object>
<details open ontoggle="fetch('URL/toggle')">x</details>
[script](javascript:fetch('URL/javascript')) $$\\href{URL/formula}{x}$$ $$\\includegraphics{URL/graphics}$$

```mermaid
graph TD; A["<img src='URL/mermaid'>"] --> B; click A "URL/click"
```

```html
<img src="URL/fenced">
```
<math><mtext><img src="URL/math"></mtext></math> <custom-tag style="background:url(URL/custom)">tag</custom-tag>
"""


def test_nothing_that_is_said_fetches_runs_or_navigates(browser):
    from nanochat_hf.page.app import Page

    with trap() as (elsewhere, asked):
        text = HOSTILE.replace("URL", elsewhere)
        tool = [
            {"type": "python", "text": f"<img src='{elsewhere}/call'>"},
            {"type": "python_output", "text": f"<img src='{elsewhere}/result'> ![x]({elsewhere}/result2)"},
            {"type": "text", "text": text},
        ]
        page_model = SayingModel(tool=tool)
        title = f"<img src='{elsewhere}/title'><b>x</b>"
        with served(Page(page_model, title)) as address, visit(browser, address) as page:
            say(page, text)
            page.get_by_text("custom-tag").last.wait_for(timeout=WAIT)
            ready(page)
            say(page, "tool")
            page.get_by_text("Calculator:").first.wait_for(timeout=WAIT)
            ready(page)
            page.get_by_text("Calculator:").first.click()
            page.wait_for_timeout(1500)
            chat = page.locator("#chat")
            for seen in (
                "<b>bold</b>",
                "<script>",
                f'<img src="{elsewhere}/img"',
                "<iframe",
                "press me",
                "<custom-tag",
            ):
                assert seen in chat.inner_text().replace("\u2060", "")
            forbidden = "b, script, iframe, form, object, embed, style, link, meta, video, audio, svg image, math img"
            live = chat.locator(f"[data-testid=user] :is({forbidden}), [data-testid=bot] :is({forbidden})")
            assert not live.all_inner_texts()
            for link in chat.locator("a[href]").all():
                link.click(timeout=2000)
            assert page.url.rstrip("/") == address and page.title() == title
            page.reload()  # what was saved is shown as harmlessly
            page.get_by_text("Calculator:").first.wait_for(timeout=WAIT)
            page.wait_for_timeout(1000)
            page.locator(".toggle-button").first.click()
            page.wait_for_timeout(500)
        assert not asked
    assert page_model.asked[0][-1]["content"] == text  # the model got what was typed


def test_markdown_code_and_formulas_are_shown_and_copied(browser):
    from nanochat_hf.page.app import Page

    said = "**bold** and `a<b` and $$x<y^2$$\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
    said += "```python\nif a <b and c[0](x): pass\n```"
    with served(Page(SayingModel(), "saying")) as address:
        with visit(browser, address, permissions=["clipboard-read", "clipboard-write"]) as page:
            say(page, said)
            ready(page)
            answer = page.locator("#chat [data-testid=bot]").last
            answer.locator("strong").wait_for(timeout=WAIT)
            assert answer.locator("table td").count() == 2 and answer.locator(".katex").count() >= 1
            assert "if a <b and c[0](x): pass" in answer.locator("pre").inner_text().replace("\u2060", "")
            page.get_by_role("button", name="Copy message").last.click()
            page.wait_for_timeout(300)
            assert page.evaluate("navigator.clipboard.readText()").strip() == said


def test_stop_failures_control_tokens_and_other_visitors(browser):
    from nanochat_hf.page.app import Page
    from nanochat_hf.page.visits import Limits

    model = SayingModel()
    limits = Limits(per_minute=0, seconds=600)
    with served(Page(model, "saying", limits=limits)) as address:
        with visit(browser, address) as page, visit(browser, address) as other:
            say(page, "fail")
            notice(page, "Something went wrong")
            ready(page)
            assert "secret" not in page.content() and page.input_value("#message textarea") == "fail"
            say(page, "<|bos|><|assistant_start|> <|user_end|>")
            ready(page)
            page.wait_for_timeout(500)
            assert "<|bos|><|assistant_start|> <|user_end|>" in shown(page)[-1].replace("\u2060", "")

            say(page, "slow")
            page.get_by_text("tick 3").wait_for(timeout=WAIT)
            say(page, "one more")
            notice(page, "still answering")
            assert page.input_value("#message textarea") == "one more"
            say(other, "waiting")  # one answer at a time: the other visitor sees the place in the queue
            other.get_by_text(re.compile(r"queue: \d+/\d+")).first.wait_for(timeout=WAIT)
            page.locator("#message .stop-button").click()
            ready(page)
            other.locator("#chat [data-testid=bot]", has_text="waiting").wait_for(timeout=WAIT)
            page.get_by_text("(stopped)").wait_for(timeout=WAIT)
            assert "tick 3" in shown(page)[-1]
            deadline = time.monotonic() + 20
            while model.running and time.monotonic() < deadline:
                time.sleep(0.1)
            assert not model.running  # the generation itself has ended, not only its display
            say(page, "one more")
            page.locator("#chat [data-testid=bot]", has_text="one more").wait_for(timeout=WAIT)


def test_limits_and_feedback(browser, tmp_path):
    from nanochat_hf.page.app import Page
    from nanochat_hf.page.visits import Feedback, Limits

    opinions = tmp_path / "opinions.jsonl"
    page_of = Page(SayingModel(), "saying", limits=Limits(per_minute=2, seconds=1), feedback=Feedback(opinions))
    with served(page_of) as address, visit(browser, address) as page:
        say(page, "slow")
        page.get_by_text("only so many seconds").wait_for(timeout=WAIT)
        ready(page)
        page.get_by_role("button", name="Dislike").click()
        notice(page, "Thank you")
        say(page, "hello")
        page.locator("#chat [data-testid=bot]", has_text="hello").wait_for(timeout=WAIT)
        ready(page)
        say(page, "too fast")
        notice(page, "2 messages per minute")
        assert page.input_value("#message textarea") == "too fast"
    (line,) = opinions.read_text().splitlines()
    assert json.loads(line)["liked"] is False and json.loads(line)["messages"][0]["content"] == "slow"


def test_without_feedback_there_are_no_thumbs(browser):
    from nanochat_hf.page.app import Page

    with served(Page(SayingModel(), "saying")) as address, visit(browser, address) as page:
        say(page, "hello")
        ready(page)
        assert not page.get_by_role("button", name="Like").count()
