"""The page itself: its parts, and which event calls what."""

import html
import math
import secrets
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from nanochat_hf.chat import LocalModel, Model, Suggestion
from nanochat_hf.chat.models import clean, default_sampling
from nanochat_hf.page.report_view import read_report
from nanochat_hf.page.safe_text import original, safe_markdown
from nanochat_hf.page.token_view import token_html, token_infos
from nanochat_hf.page.views import chatbot_messages
from nanochat_hf.page.visits import (
    Feedback,
    Limits,
    Rate,
    check_message,
    is_dropping,
    read_messages,
    write_answer,
)
from nanochat_hf.settings import UserError

STATIC = Path(__file__).with_name("static")
MARK = STATIC / "mark.svg"
FORMULAS = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' blob: data:; media-src 'self' blob:; "
    "worker-src 'self' blob:; frame-src 'none'; object-src 'none'; form-action 'self'; base-uri 'self'"
)
MISHAP = "Something went wrong on this side. Your message is still there; please try again."


@dataclass
class Page:
    """What the page shows and allows.

    Attributes:
        model: who answers.
        title: heading of the page.
        suggestions: questions to begin with.
        others: further checkpoints to compare with, name → a function that loads it; `model` is among them.
        report: path of a report, or None for no such tab.
        feedback: where visitors' opinions go; None: the page has no such buttons.
        limits: what one visitor may ask for.
        trust_proxy: whether the visitor's address stands in X-Forwarded-For, as behind a Space's proxy.
    """

    model: Model
    title: str
    suggestions: Sequence[Suggestion] = ()
    others: dict[str, Callable[[], Model]] = field(default_factory=dict)
    report: Path | None = None
    feedback: Feedback | None = None
    limits: Limits = field(default_factory=Limits)
    trust_proxy: bool = False


class Visits:
    """The page's event handlers. Each refusal is a notice, and nothing that a visitor typed is lost."""

    def __init__(self, page: Page, gpu: Callable[[Callable], Callable]):
        """Takes the page; `gpu` wraps the functions that run a model (Hugging Face's ZeroGPU)."""
        self.page, self.limits = page, page.limits
        self.rate = Rate(page.limits.per_minute)
        self.loaded: dict[str, Model] = {}
        self.write = gpu(write_answer)
        self.infos = gpu(token_infos)

    # ---- the chat ------------------------------------------------------------------

    def send(self, text: str, busy: bool, conversation: Any, system: str, request: gr.Request) -> tuple:
        """Checks a message; returns (what `take` takes, busy), or refuses it with a notice."""
        return self._check(text, busy, conversation, system, request)

    def asking(self, question: str) -> Callable:
        """Returns a handler that takes this suggested question; see `send`."""

        def ask(busy: bool, conversation: Any, system: str, request: gr.Request) -> tuple:
            return self._check(question, busy, conversation, system, request)

        return ask

    def retry(self, busy: bool, conversation: Any, system: str, request: gr.Request) -> tuple:
        """Checks the last message once more; see `send`."""
        messages = (conversation or {}).get("messages") or []
        users = [index for index, message in enumerate(messages) if message.get("role") == "user"]
        if not users:
            raise refusal("There is nothing to answer again.")
        return self._check(messages[users[-1]].get("content"), busy, conversation, system, request, keep=users[-1])

    def edit(self, busy: bool, conversation: Any, system: str, event: gr.EditData, request: gr.Request) -> tuple:
        """Checks a changed message, which takes the place of the old one and of all after it; see `send`."""
        messages = (conversation or {}).get("messages") or []
        place = event.index[0] if isinstance(event.index, (list, tuple)) else event.index
        try:
            owners = chatbot_messages(read_messages(messages, self.limits))[1]
            owner = owners[place]
        except (UserError, IndexError):
            raise refusal("This message cannot be changed any more.") from None
        value = event.value if isinstance(event.value, str) else ""
        return self._check(original(value), busy, conversation, system, request, keep=owner)

    def take(self, conversation: Any, text: str) -> tuple:
        """Shows a message that was accepted; returns (chatbot, conversation, textbox)."""
        box = gr.update(submit_btn=False, stop_btn=True)
        if text == conversation["messages"][-1]["content"]:  # otherwise it is the beginning of the next message
            box["value"] = ""
        return self._view(conversation["messages"]), conversation, box

    def restore(self, conversation: Any) -> Any:
        """Shows the conversation as it was, after a change that was refused; returns the chatbot."""
        return self._view((conversation or {}).get("messages") or [])

    def undo(self, conversation: Any) -> tuple:
        """Takes the last message back into the box; returns (chatbot, conversation, textbox)."""
        messages = list((conversation or {}).get("messages") or [])
        users = [index for index, message in enumerate(messages) if message.get("role") == "user"]
        if not users:
            return gr.skip(), gr.skip(), gr.skip()
        text = messages[users[-1]].get("content")
        kept = {**conversation, "messages": messages[: users[-1]]}
        return self._view(kept["messages"]), kept, gr.update(value=text)

    def answer(
        self,
        conversation: Any,
        system: str,
        temperature: float,
        top_k: int,
        top_p: float,
        new_tokens: int,
    ) -> Iterator[tuple]:
        """Writes the answer; yields (chatbot, conversation), again and again until it is complete."""
        messages, system = conversation["messages"], clean(system)
        done = False
        try:
            sampling = self._sampling(temperature, top_k, top_p, new_tokens)
            head = [{"role": "system", "content": system}] if system.strip() else []
            read = read_messages([*head, *messages], self.limits)
            fitting, dropped = self.page.model.fit(read, sampling["max_new_tokens"])
            if dropped and not is_dropping(self.page.model, read[:-2], sampling["max_new_tokens"]):
                gr.Info("The model's context is full. From now on it forgets the oldest messages.", duration=8)
            for message in self.write(self.page.model, fitting, self.limits, **sampling):
                done = True
                whole = [*messages, {**message, "system": system if head else "", "left_out": dropped}]
                yield self._view(whole), {**conversation, "messages": whole}
        except UserError as error:
            gr.Warning(html.escape(str(error)))
        except Exception:
            traceback.print_exc()  # for the owner; the visitor gets a notice, and the page goes on
            gr.Warning(MISHAP)
        if not done:
            yield gr.skip(), gr.skip()

    def ready(self, conversation: Any) -> tuple:
        """After an answer or a stop: the box works again. Returns (chatbot, conversation, textbox, busy).

        A message without an answer goes back into the box.
        """
        box = {"submit_btn": True, "stop_btn": False}
        messages = list((conversation or {}).get("messages") or [])
        if messages and messages[-1].get("role") == "user":
            kept = {**conversation, "messages": messages[:-1]}
            box["value"] = messages[-1].get("content")
            return self._view(kept["messages"]), kept, gr.update(**box), False
        return gr.skip(), gr.skip(), gr.update(**box), False

    def show(self, conversation: Any) -> tuple:
        """Shows a conversation that was opened; returns (chatbot, conversation)."""
        try:
            messages = read_messages((conversation or {}).get("messages") or [], self.limits)
        except (UserError, AttributeError):
            gr.Warning("This conversation cannot be read any more.")
            return [], {"id": "", "messages": []}
        return self._view(messages), {"id": str((conversation or {}).get("id") or ""), "messages": messages}

    def like(self, conversation: Any, event: gr.LikeData) -> None:
        """Writes a visitor's opinion to the owner's file."""
        try:
            messages = read_messages((conversation or {}).get("messages"), self.limits)
            place = event.index[0] if isinstance(event.index, (list, tuple)) else event.index
            owner = chatbot_messages(messages)[1][place]
        except (UserError, AttributeError, IndexError):
            return
        if self.page.feedback is not None:
            self.page.feedback.write(messages, owner, bool(event.liked), self.page.model.name)
            gr.Info("Thank you. Your opinion and this conversation were sent to the owner of the page.", duration=4)

    # ---- the other tabs ------------------------------------------------------------

    def answers(self, conversation: Any) -> tuple:
        """Lists the conversation's answers for the token view; returns (dropdown, HTML) for the last of them."""
        messages = (conversation or {}).get("messages") or []
        choices = []
        for index, message in enumerate(messages):
            if message.get("role") == "assistant":
                text = " ".join(str(messages[index - 1].get("content", "")).split())
                choices.append((f"{len(choices) + 1}. after “{text[:60]}”", index))
        last = choices[-1][1] if choices else None
        return gr.update(choices=choices, value=last), self.tokens(last, conversation)

    def tokens(self, index: int | None, conversation: Any) -> str:
        """Returns the tokens of an answer as HTML."""
        model = self.page.model
        if index is None or not isinstance(model, LocalModel):
            return token_html([])
        try:
            *before, answer = read_messages(conversation["messages"], self.limits)[: int(index) + 1]
            if "left_out" not in answer:  # stored by an older version
                before, _ = model.fit(before, 1)
            head = [{"role": "system", "content": answer["system"]}] if answer.get("system") else []
            read = [*read_messages(head, self.limits), *before[answer.get("left_out", 0) :], answer]
            return token_html(self.infos(model.model, model.tokenizer, read, model.context_length))
        except UserError as error:
            return f'<p class="quiet">{html.escape(str(error))}</p>'
        except Exception:
            traceback.print_exc()
            return f'<p class="quiet">{MISHAP}</p>'

    def compare(
        self,
        text: str,
        left: str,
        right: str,
        system: str,
        temperature: float,
        top_k: int,
        top_p: float,
        new_tokens: int,
        request: gr.Request,
    ) -> Iterator[tuple]:
        """Lets two checkpoints answer one message, side by side; yields (left chatbot, right chatbot)."""
        try:
            self.rate.check(self._visitor(request))
            message = {"role": "user", "content": check_message(text, self.limits)}
            head = [{"role": "system", "content": clean(system)}] if system.strip() else []
            sampling = self._sampling(temperature, top_k, top_p, new_tokens)
            shown = [[message], [message]]
            yield tuple(map(self._view, shown))
            streams: list[Iterator | None] = []
            for name in (left, right):
                model = self._load(name)
                fitting, _ = model.fit([*head, message], sampling["max_new_tokens"])
                streams.append(self.write(model, fitting, self.limits, **sampling))
            while any(stream is not None for stream in streams):
                for side, stream in enumerate(streams):
                    if stream is None:
                        continue
                    try:
                        shown[side] = [message, next(stream)]
                    except StopIteration:
                        streams[side] = None
                yield tuple(map(self._view, shown))
        except UserError as error:
            gr.Warning(html.escape(str(error)))
            yield gr.skip(), gr.skip()
        except Exception:
            traceback.print_exc()
            gr.Warning(MISHAP)
            yield gr.skip(), gr.skip()

    def api_chat(
        self,
        message: str,
        system: str | None = "",
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        max_new_tokens: int = 256,
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> Iterator[str]:
        """Answers one message; yields the text so far, calculator calls as ⟨call = result⟩."""
        from nanochat_hf.tools.presentation import plain_text

        try:
            self.rate.check(self._visitor(request))
            messages = [{"role": "user", "content": check_message(message, self.limits)}]
            if not isinstance(system, str | None):
                raise UserError("The system message must be text.")
            if system and system.strip():
                messages.insert(0, {"role": "system", "content": check_message(system, self.limits, "system message")})
            defaults = default_sampling(self.page.model)
            sampling = self._sampling(
                defaults["temperature"] if temperature is None else temperature,
                (defaults["top_k"] or 0) if top_k is None else top_k,
                (defaults["top_p"] or 0) if top_p is None else top_p,
                max_new_tokens,
            )
            sampling["max_new_tokens"] = min(sampling["max_new_tokens"], self.limits.new_tokens)
            fitting, _ = self.page.model.fit(messages, sampling["max_new_tokens"])
            for answer in self.write(self.page.model, fitting, self.limits, **sampling):
                yield plain_text(answer["content"])
        except (UserError, ValueError) as error:
            raise gr.Error(str(error), print_exception=False) from None

    # ---- inside --------------------------------------------------------------------

    def _sampling(self, temperature: float, top_k: int, top_p: float, new_tokens: int) -> dict[str, Any]:
        """The sampling of the sliders; min-p, which has no slider, is the checkpoint's own.

        Raises:
            UserError: a setting is no number, as where a slider's box was emptied.
        """
        given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "max_new_tokens": new_tokens}
        for name, value in given.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise UserError(f"{name} must be a number, not {value!r:.60}")
        return dict(
            temperature=float(temperature),
            top_k=int(top_k) or None,
            top_p=float(top_p) or None,
            min_p=default_sampling(self.page.model)["min_p"],
            max_new_tokens=int(new_tokens),
        )

    def _check(
        self, text: Any, busy: bool, conversation: Any, system: str, request: gr.Request, keep: int | None = None
    ) -> tuple:
        """Accepts a message in place of message number `keep` and of all after it; None: after the last one."""
        try:
            if busy:
                raise UserError("The model is still answering. Wait for it, or stop it first.")
            text = check_message(text, self.limits)
            if system.strip():
                system = check_message(system, self.limits, "system message")
            conversation = conversation if isinstance(conversation, dict) else {}
            messages = read_messages(conversation.get("messages") or [], self.limits)[:keep]
            head = [{"role": "system", "content": system}] if system.strip() else []
            self.page.model.fit([*head, {"role": "user", "content": text}], 1)  # alone it must fit
            if len(messages) + 2 > self.limits.messages:
                raise UserError(f"A conversation has at most {self.limits.messages} messages here. Start a new one.")
            self.rate.check(self._visitor(request))
        except UserError as error:
            raise refusal(str(error)) from None
        except Exception:
            traceback.print_exc()
            raise refusal(MISHAP) from None
        accepted = {
            "id": conversation.get("id") or secrets.token_hex(8),
            "messages": [*messages, {"role": "user", "content": text}],
        }
        return accepted, True

    def _load(self, name: str) -> Model:
        if name not in self.page.others:
            raise UserError("There is no such checkpoint here. Please choose two from the lists.")
        if name not in self.loaded:
            self.loaded[name] = self.page.others[name]()
        return self.loaded[name]

    def _visitor(self, request: gr.Request | None) -> str:
        if request is None or request.client is None:
            return "?"
        forwarded = request.headers.get("x-forwarded-for") if self.page.trust_proxy else None
        return forwarded.split(",")[0].strip() if forwarded else str(request.client.host)

    @staticmethod
    def _view(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return chatbot_messages(messages)[0]


def refusal(reason: str) -> gr.Error:
    """Shows a notice, and returns the error that ends an event and shows nothing more.

    Gradio covers the parts that a failed event would have changed. So only events that change none of them fail.
    """
    gr.Warning(html.escape(reason[:1].upper() + reason[1:]), title="Not sent")
    return gr.Error(visible=False, print_exception=False)


def build(page: Page, gpu: Callable[[Callable], Callable] = lambda function: function) -> gr.Blocks:
    """Builds the page.

    Args:
        page: what it shows and allows.
        gpu: wraps the functions that run a model; `spaces.GPU` on ZeroGPU hardware.
    """
    visits = Visits(page, gpu)
    limits = page.limits
    local = isinstance(page.model, LocalModel)
    defaults = default_sampling(page.model)
    longest = min(limits.new_tokens, page.model.context_length - 1) if local else limits.new_tokens
    turns = {"concurrency_limit": limits.at_once, "concurrency_id": "model"}
    private = {"api_visibility": "private"}
    quick = {"concurrency_limit": None, "show_progress": "hidden", **private}  # in the queue: notices need it

    with gr.Blocks(title=page.title, analytics_enabled=False, fill_height=False) as app:
        with gr.Sidebar(open=False, label="Conversations", elem_id="side"):
            gr.Markdown("### Conversations\nThey are kept in this browser only.")
            new_chat = gr.Button("New conversation", variant="primary", elem_id="new")
            saved = gr.Radio([], label="Saved conversations", elem_id="conversations", visible=False)
            delete = gr.Button("Delete this conversation", variant="secondary", size="sm", elem_id="delete")
        gr.HTML(_head(page), elem_id="head", padding=False)
        conversation = gr.JSON({"id": "", "messages": []}, visible=False)
        listed = gr.JSON([], visible=False)
        accepted = gr.State(None)  # the conversation with a message that was accepted
        busy = gr.State(False)  # whether an answer is being written in this tab

        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Chat", id="chat-tab"):
                chatbot = gr.Chatbot(
                    show_label=False,
                    label="Conversation",
                    elem_id="chat",
                    height="58vh",
                    buttons=["copy"],
                    latex_delimiters=FORMULAS,
                    placeholder=_welcome(page),
                    feedback_options=("Like", "Dislike") if page.feedback else (),
                    editable="user",
                    avatar_images=(None, str(MARK)),
                )
                textbox = gr.Textbox(
                    show_label=False,
                    label="Your message",
                    placeholder="Write a message",
                    elem_id="message",
                    autofocus=True,
                    submit_btn=True,
                    lines=1,
                    max_lines=8,
                )
                questions = []
                if page.suggestions:
                    with gr.Row(elem_classes="questions"):
                        for one in page.suggestions:
                            questions.append(gr.Button(one.label, size="sm", variant="secondary", min_width=220))
            if len(page.others) > 1:
                with gr.Tab("Compare", id="compare-tab"):
                    names = list(page.others)
                    gr.Markdown("One message, two checkpoints of this run: see what training changed.")
                    both = gr.Textbox(
                        show_label=False,
                        label="Message for both models",
                        placeholder="Write a message for both",
                        elem_id="compare-message",
                        submit_btn=True,
                    )
                    both_questions = []
                    if page.suggestions:
                        with gr.Row(elem_classes="questions"):
                            for one in page.suggestions:
                                both_questions.append(gr.Button(one.label, size="sm", min_width=220))
                    with gr.Row():
                        left = gr.Dropdown(names, value=names[0], label="Left: checkpoint", elem_id="left")
                        right = gr.Dropdown(names, value=names[-1], label="Right: checkpoint", elem_id="right")
                    with gr.Row():
                        side = {"height": "46vh", "latex_delimiters": FORMULAS, "buttons": ["copy"], "min_width": 260}
                        side |= {"feedback_options": (), "elem_classes": "answer", "show_label": False}
                        left_answer = gr.Chatbot(label="Left answer", elem_id="left-answer", **side)
                        right_answer = gr.Chatbot(label="Right answer", elem_id="right-answer", **side)
            if local:
                with gr.Tab("Tokens", id="tokens-tab") as tokens_tab:
                    gr.Markdown(
                        "An answer as the model sees it. Point at a token, tap it or move to it with the Tab key: you "
                        "see how likely it was, and the five likeliest tokens in its place."
                    )
                    which = gr.Dropdown([], label="Answer", elem_id="which")
                    tiles = gr.HTML(token_html([]), elem_id="tokens")
            if page.report is not None:
                with gr.Tab("Report", id="report-tab"):
                    for section in read_report(page.report):
                        if section.picture is None:
                            gr.Markdown(section.markdown, elem_classes="report")
                        else:
                            gr.Image(
                                str(section.picture),
                                label=section.caption,
                                show_label=False,
                                buttons=["fullscreen"],
                                interactive=False,
                            )
                            gr.Markdown(f"*{section.caption}*", elem_classes="caption")

        with gr.Accordion("Settings", open=False, elem_id="settings"):
            system = gr.Textbox(
                "",
                label="System message",
                info="Tells the model how to behave in the whole conversation. Empty: nothing.",
                lines=2,
                max_length=limits.characters,
            )
            with gr.Row():
                temperature = gr.Slider(
                    0,
                    2,
                    value=defaults["temperature"],
                    step=0.05,
                    label="Surprise (temperature)",
                    info="0: always the likeliest word. Higher: more varied, and more often wrong.",
                )
                new_tokens = gr.Slider(
                    1,
                    longest,
                    value=min(512, longest),
                    step=1,
                    label="Longest answer",
                    info="In tokens; a token is about four letters.",
                )
            with gr.Row():
                top_k = gr.Slider(
                    0,
                    200,
                    value=defaults["top_k"] or 0,
                    step=1,
                    label="Choices per token (top-k)",
                    info="Only so many of the likeliest tokens may be chosen. 0: all.",
                )
                top_p = gr.Slider(
                    0.05,
                    1,
                    value=defaults["top_p"] or 1,
                    step=0.05,
                    label="Share of probability (top-p)",
                    info="Only the likeliest tokens up to this share may be chosen. 1: all.",
                )
        settings = [system, temperature, top_k, top_p, new_tokens]

        # ---- the chat's events: take the message, write the answer, be ready for the next one, save
        checked = [accepted, busy]

        def answering(event: Any) -> Any:
            wrote = event.success(visits.take, [accepted, textbox], [chatbot, conversation, textbox], **quick).then(
                visits.answer,
                [conversation, *settings],
                [chatbot, conversation],
                show_progress="full",
                **turns,
                **private,
            )
            save(wrote.then(visits.ready, [conversation], [chatbot, conversation, textbox, busy], **quick))
            return wrote

        def save(event: Any) -> None:
            event.then(
                None, [conversation], [listed], js="(conversation) => [window.nanochat.save(conversation)]", **private
            )

        state = [busy, conversation, system]

        answers = [answering(textbox.submit(visits.send, [textbox, *state], checked, **quick))]
        answers.append(answering(chatbot.retry(visits.retry, state, checked, **quick)))
        edited = chatbot.edit(visits.edit, state, checked, **quick)
        edited.failure(visits.restore, [conversation], [chatbot], **quick)
        answers.append(answering(edited))
        for one, button in zip(page.suggestions, questions, strict=False):
            asked = button.click(visits.asking(one.question), state, checked, **quick)
            answers.append(answering(asked))
        textbox.stop(None, None, None, cancels=answers, **private)
        save(chatbot.undo(visits.undo, [conversation], [chatbot, conversation, textbox], **quick))
        if page.feedback is not None:
            chatbot.like(visits.like, [conversation], None, **quick)

        # ---- conversations in this browser
        shown = ([conversation], [chatbot, conversation])
        app.load(None, None, [listed, conversation], js="() => window.nanochat.last()", **private).then(
            visits.show, *shown, **quick
        )
        listed.change(_list_conversations, [listed], [saved], **quick)
        saved.input(None, [saved], [conversation], js="(id) => window.nanochat.open(id)", **private).then(
            visits.show, *shown, **quick
        )
        for start in (new_chat.click, chatbot.clear):
            start(None, None, [conversation], js="() => window.nanochat.start()", **private).then(
                visits.show, *shown, **quick
            ).then(lambda: gr.update(value=None), None, [saved], **quick)
        delete.click(
            None,
            [conversation],
            [listed, conversation],
            js="(conversation) => window.nanochat.remove(conversation)",
            **private,
        ).then(visits.show, *shown, **quick)

        # ---- the other tabs' events
        if len(page.others) > 1:
            compared = ([both, left, right, *settings], [left_answer, right_answer])
            both.submit(visits.compare, *compared, show_progress="full", **turns, **private)
            for one, button in zip(page.suggestions, both_questions, strict=True):
                button.click(partial(str, one.question), None, [both], **quick).then(
                    visits.compare, *compared, show_progress="full", **turns, **private
                )
            for chosen, column in ((left, left_answer), (right, right_answer)):
                chosen.change(lambda: [], None, [column], **quick)  # the old answer is not this checkpoint's
        if local:
            tokens_tab.select(visits.answers, [conversation], [which, tiles], **turns, **private)
            which.input(visits.tokens, [which, conversation], [tiles], **turns, **private)
        gr.api(visits.api_chat, api_name="chat", **turns)

    app.queue(max_size=limits.queue, default_concurrency_limit=limits.at_once)
    return app


def launch(app: gr.Blocks, host: str, port: int, **options: Any) -> None:
    """Serves the page until it is stopped. No part of it comes from another server."""
    gr.set_static_paths([STATIC])
    app.launch(
        server_name=host,
        server_port=port,
        favicon_path=str(MARK),
        head='<link rel="icon" type="image/svg+xml" href="favicon.ico">',
        theme=theme(),
        css_paths=[STATIC / "page.css"],
        js=(STATIC / "page.js").read_text(encoding="utf-8"),
        footer_links=["api"],
        app_kwargs={"middleware": [(PolicyHeader, (), {})]},
        ssr_mode=False,
        **options,
    )


class PolicyHeader:
    """Adds the Content-Security-Policy to every answer of the server (ASGI)."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
                message = {**message, "headers": [*message.get("headers", []), *headers]}
            await send(message)

        await self.app(scope, receive, with_policy if scope["type"] == "http" else send)


def theme() -> gr.themes.Base:
    """The page's colours and fonts. The fonts are the visitor's own: none is fetched."""
    return gr.themes.Soft(
        primary_hue="amber",
        secondary_hue="amber",
        neutral_hue="stone",
        radius_size="md",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"],
    ).set(  # more contrast than the theme's own
        body_background_fill="*neutral_50",
        block_border_width="1px",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_700",
        button_secondary_background_fill="white",
        button_secondary_background_fill_hover="*neutral_50",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_300",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        block_title_background_fill="transparent",
        block_title_background_fill_dark="transparent",
        block_title_padding="0",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_400",
        button_primary_background_fill_hover="*primary_300",
        button_primary_background_fill_dark="*primary_500",
        button_primary_text_color="*neutral_900",
        button_primary_text_color_dark="*neutral_950",
        color_accent="*primary_700",
    )


def _head(page: Page) -> str:
    mark = MARK.read_text(encoding="utf-8").replace('role="img" aria-label="nanochat-hf"', 'aria-hidden="true"')
    line = "A language model trained from scratch with nanochat-hf. It is small, and wrong now and then."
    return f'<header class="page-head">{mark}<div><h1>{html.escape(page.title)}</h1><p>{line}</p></div></header>'


def _welcome(page: Page) -> str:
    if page.suggestions:
        return "### Say something\nOr take one of the questions below: the model was trained for them."
    return f"### Say something\n{safe_markdown(page.title)} is listening."


def _list_conversations(listed: Any) -> Any:
    found = [(str(one.get("title") or "Conversation"), str(one["id"])) for one in listed or [] if one.get("id")]
    return gr.update(choices=found, visible=bool(found))
