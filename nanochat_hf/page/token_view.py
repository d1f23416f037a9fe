"""An answer as tiles of tokens: control tokens, forced tool tokens, the trained mask, probabilities, alternatives."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanochat_hf.chat.models import for_model

MAX_TOKENS = 2_048  # shown at most
ALTERNATIVES = 5
LEGEND = """\
<ul class="legend" aria-label="What the colours mean">
<li><span class="tile p9">token</span> likely</li>
<li><span class="tile p1">token</span> unlikely</li>
<li><span class="tile control">control</span> control token</li>
<li><span class="tile forced">forced</span> written by the calculator, not by the model</li>
<li><span class="tile prompt">prompt</span> what the model has read</li>
<li><span class="tile trained">trained</span> underlined: training teaches tokens in this place</li>
</ul>"""


@dataclass(frozen=True)
class TokenInfo:
    """One token of a conversation.

    Attributes:
        token_id: its id.
        text: what it stands for; bytes that are no whole character as U+FFFD.
        is_control: whether it is one of the control tokens.
        is_prompt: whether the model has read it rather than written it.
        is_forced: whether a tool wrote it.
        is_trained: whether training on this conversation would teach it.
        probability: what the model gave it after all tokens before it, without temperature; None for the first one.
        alternatives: the likeliest tokens at its place, as (text, probability).
    """

    token_id: int
    text: str
    is_control: bool
    is_prompt: bool
    is_forced: bool
    is_trained: bool
    probability: float | None
    alternatives: tuple[tuple[str, float], ...]


def token_infos(
    model: Any, tokenizer: Any, messages: Sequence[dict[str, Any]], context_length: int
) -> list[TokenInfo]:
    """Reads a conversation that ends with an assistant's answer, and returns its tokens.

    The tokens of the answer are those that were sampled, if the message has `token_ids`; otherwise its text is
    tokenized again. One pass of the model gives all probabilities.

    Args:
        model, tokenizer: of transformers.
        messages: as the model has read them; the last one is the assistant's.
        context_length: tokens that the model reads at most.
    """
    import torch

    from nanochat_hf.generation.tool_loop import ControlTokens

    control = ControlTokens.from_tokenizer(tokenizer, model)
    read = [for_model(message) for message in messages[:-1]]
    rendered = tokenizer.apply_chat_template(
        read, add_generation_prompt=True, return_dict=True, return_assistant_tokens_mask=True
    )
    prompt, trained = list(rendered["input_ids"]), list(rendered["assistant_masks"])
    answer = [token for token in messages[-1].get("token_ids") or () if token < len(tokenizer)]
    if not answer:
        whole = tokenizer.apply_chat_template([for_model(one) for one in messages], return_dict=False)
        answer = list(whole)[len(prompt) :]
    ids = (prompt + answer)[: min(context_length, MAX_TOKENS)]
    forced = set(_forced_places(ids, len(prompt), control))
    with torch.inference_mode():
        logits = model(torch.tensor([ids], device=model.device)).logits[0].float()  # [T, V]
        probabilities = logits[:, : len(tokenizer)].softmax(dim=-1)
        best, best_ids = probabilities.topk(ALTERNATIVES, dim=-1)  # [T, ALTERNATIVES]
    found = []
    for place, token in enumerate(ids):
        is_prompt = place < len(prompt)
        before = place - 1
        alternatives: tuple[tuple[str, float], ...] = ()
        if place:
            pairs = zip(best_ids[before].tolist(), best[before].tolist(), strict=True)
            alternatives = tuple((_spelled(tokenizer, one), share) for one, share in pairs)
        found.append(
            TokenInfo(
                token,
                _spelled(tokenizer, token),
                token in control.hidden or token in control.stop,
                is_prompt,
                place in forced,
                bool(trained[place]) if is_prompt else place not in forced,
                float(probabilities[before, token]) if place else None,
                alternatives,
            )
        )
    return found


def _forced_places(ids: Sequence[int], start: int, control: Any) -> list[int]:
    """The places from `start` on that a tool wrote: from output start to output end."""
    places, inside = [], False
    for place in range(start, len(ids)):
        inside = inside or (control.output_start is not None and ids[place] == control.output_start)
        if inside:
            places.append(place)
        if control.output_end is not None and ids[place] == control.output_end:
            inside = False
    return places


def token_html(infos: Sequence[TokenInfo]) -> str:
    """Returns the tokens as tiles, in HTML. Each tile is a button, so that keyboard and touch can open its details."""
    if not infos:
        return '<p class="quiet">There is no answer to show yet.</p>'
    written = [info for info in infos if not info.is_prompt]
    sampled = [info.probability for info in written if not info.is_forced and info.probability]
    summary = f"{len(infos)} tokens: {len(infos) - len(written)} read, {len(written)} in the answer"
    if sampled:
        bits = -sum(math.log2(share) for share in sampled) / len(sampled)
        summary += f", {bits:.2f} bits of surprise per token that the model chose"
    tiles = "".join(_tile(info) for info in infos)
    return f'<p class="quiet">{summary}.</p>{LEGEND}<div class="tiles" role="group" aria-label="Tokens">{tiles}</div>'


def _tile(info: TokenInfo) -> str:
    classes = ["tile"]
    if info.is_control:
        classes.append("control")
    if info.is_forced:
        classes.append("forced")
    elif info.is_prompt:
        classes.append("prompt")
    elif info.probability is not None:
        classes.append(f"p{min(9, int(info.probability * 10))}")
    if info.is_trained:
        classes.append("trained")
    states = [
        name
        for name, holds in (
            ("control token", info.is_control),
            ("written by the calculator", info.is_forced),
            ("read", info.is_prompt),
            ("trained", info.is_trained),
        )
        if holds
    ]
    share = "" if info.probability is None else f", probability {_percent(info.probability)}"
    label = f"token {_visible(info.text)}{share}"
    rows = "".join(
        f'<span class="{"row same" if text == info.text else "row"}"><code>{_escaped(text)}</code>'
        f'<span class="bar" style="--share:{probability:.4f}"></span><span>{_percent(probability)}</span></span>'
        for text, probability in info.alternatives
    )
    head = f'<span class="head"><code>{_escaped(info.text)}</code> id {info.token_id}{html.escape(share)}</span>'
    details = f'{head}<span class="states">{html.escape(", ".join(states))}</span>{rows}'
    line_break = "<br>" if "\n" in info.text else ""
    return (
        f'<button type="button" class="{" ".join(classes)}" aria-label="{html.escape(label)}">'
        f'{_escaped(info.text)}<span class="details" role="tooltip">{details}</span></button>{line_break}'
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else "< 0.1 %"


def _visible(text: str) -> str:
    return text.replace("\n", "↵").replace(" ", "·").replace("\t", "→") or "∅"


def _escaped(text: str) -> str:
    return html.escape(_visible(text))


def _spelled(tokenizer: Any, token: int) -> str:
    return tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
