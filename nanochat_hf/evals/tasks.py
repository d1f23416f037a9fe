"""The chat tasks and their mean, ChatCORE: exams scored by logits, problems scored by sampled answers.

ChatCORE is the mean centered score over the tasks that were run. It depends on which tasks those are: nanochat's own
number jumped when a spelling task was added. So every result lists its tasks.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from nanochat_hf.evals.evaluated_model import EvaluatedModel
from nanochat_hf.evals.items import digest_of
from nanochat_hf.evals.metrics.formulas import (
    accuracy_with_interval,
    centered,
    mean,
    mean_centered_of_items,
    mean_pass_at_k,
    wilson_interval,
)
from nanochat_hf.evals.scoring import Row, distributed_rank, gather_sum, read_groups
from nanochat_hf.generation import Sampling, context_length_of, generate_with_tools
from nanochat_hf.generation.own_tools import generate_with_own_tools
from nanochat_hf.settings import UserError
from nanochat_hf.tasks.base import score_of


@dataclass
class ChatResult:
    """Scores of one chat task.

    Attributes:
        name: the task.
        kind: "choice" (an exam) or "generative" (problems).
        baseline: chance accuracy, 0 to 1.
        scores: for each item, one score per sample; an exam has one sample per item.
        samples: a few prompts with the first answer and its score, for the report.
        truncated: number of items whose prompt was too long and lost its beginning.
        digest: tells whether two results are about the same items, see `evals.items`.
    """

    name: str
    kind: str
    baseline: float
    scores: list[list[float]]
    samples: list[dict[str, Any]] = field(default_factory=list)
    truncated: int = 0
    digest: int = 0

    @property
    def outcomes(self) -> list[float]:
        """Per item, the mean over its samples: the expected score of one sample."""
        return [mean(item) for item in self.scores]

    @property
    def accuracy(self) -> float:
        """Mean outcome, 0 to 1."""
        return mean(self.outcomes)

    def row(self) -> dict[str, Any]:
        """The task's row for tables: accuracy with its 95 % Wilson interval, chance, pass@k and their `intervals`."""
        row = {
            "task": self.name,
            "kind": self.kind,
            "items": len(self.scores),
            **accuracy_with_interval(self.outcomes),
            "baseline": self.baseline,
            "centered": centered(self.accuracy, self.baseline),
            "truncated": self.truncated,
        }
        num_samples, intervals = len(self.scores[0]), {}
        for k in sorted({2**i for i in range(1, num_samples.bit_length())} | {num_samples}):
            if 1 < k <= num_samples:
                num_correct = [sum(score > 0 for score in item) for item in self.scores]
                value = mean_pass_at_k([num_samples] * len(num_correct), num_correct, k)
                row[f"pass@{k}"] = value
                intervals[f"pass@{k}"] = wilson_interval(value * len(num_correct), len(num_correct))
        return row | ({"intervals": intervals} if intervals else {})


@dataclass(frozen=True)
class AnswerSampling:
    """How many answers are sampled per problem, and how. The defaults are nanochat's: one greedy answer.

    Attributes:
        sampling: how tokens are drawn, and the longest answer in tokens.
        num_samples: answers per problem.
        batch_size: answers generated at the same time (problems × samples).
        seed: of the draws; the same seed gives the same answers.

    Raises:
        UserError: several greedy samples are asked for; they would all be the same.
    """

    sampling: Sampling = Sampling(max_new_tokens=512, temperature=0.0, top_k=50)
    num_samples: int = 1
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_samples > 1 and self.sampling.temperature == 0:
            raise UserError("several samples of a greedy model are all the same: set --temperature above 0")


def check_items(evaluated: EvaluatedModel, task: Any) -> None:
    """Makes every example of a task once, so that no fault of the data ends an evaluation in its midst.

    Raises:
        UserError: there is no example, one is faulty, or the letter of an exam is more than one token for this model.
    """
    if not len(task):
        raise UserError(f"the task {task.name} has no items; give other data, or leave it out")
    letters = {letter for index in range(len(task)) for letter in task[index].get("letters", ())}
    for letter in sorted(letters):
        evaluated.letter_id(letter)


@torch.inference_mode()
def evaluate_choice(
    evaluated: EvaluatedModel,
    task: Any,
    *,
    limit: int | None = None,
    max_tokens: int = 16384,
    max_length: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> ChatResult:
    """Scores an exam: the chosen letter is the one with the highest logit where the answer begins.

    Nothing is generated. A model that would chat instead of answering is still scored, so this is an upper bound on
    what a user sees.

    Args:
        task: an exam of `nanochat_hf.tasks`; its examples have `letters`.
        limit: scores the first `limit` items; None scores all. Several processes share the items.
        max_tokens: padded tokens per forward pass.
        max_length: longer prompts lose their beginning, and are counted; None keeps them whole.
        progress: called with the number of items finished after each batch.

    Raises:
        UserError: a letter is more than one token for this model.
    """
    rank, world = distributed_rank()
    device = next(evaluated.model.parameters()).device
    count = len(task) if limit is None else min(limit, len(task))
    own_indices = list(range(rank, count, world))
    examples = [task[index] for index in own_indices]
    whole = [evaluated.prompt_ids(example["messages"][:-1]) for example in examples]
    prompts = [prompt[-(max_length or 0) :] for prompt in whole]
    truncated = sum(len(prompt) < len(other) for prompt, other in zip(prompts, whole, strict=True))
    letters_used = sorted({letter for example in examples for letter in example["letters"]})
    letter_ids = {letter: evaluated.letter_id(letter) for letter in letters_used}
    scores = torch.zeros(count, dtype=torch.float64)
    rows = [[Row(prompt, len(prompt) - 1)] for prompt in prompts]
    for batch, logits in read_groups(evaluated.model, rows, max_tokens=max_tokens):  # [items of the batch, V]
        for index, at_end in zip(batch, logits.cpu(), strict=True):
            letters = examples[index]["letters"]
            best = at_end[[letter_ids[letter] for letter in letters]].argmax().item()
            scores[own_indices[index]] = task.score(examples[index], letters[best])
        if progress:
            progress(len(batch))
    scores = gather_sum(scores.to(device)).tolist()
    total = int(gather_sum(torch.tensor(float(truncated), device=device)))
    digest = _digest(zip(own_indices, examples, strict=True), device)
    return ChatResult(
        task.name, "choice", task.baseline, [[score] for score in scores], truncated=total, digest=digest
    )


def _digest(examples: Iterable[tuple[int, dict[str, Any]]], device: torch.device) -> int:
    """The digest of the examples of all processes; `examples` are pairs of index and example of this one."""
    own = digest_of((index, example["messages"]) for index, example in examples)
    return int(gather_sum(torch.tensor([own], device=device)).item())


def evaluate_generative(
    evaluated: EvaluatedModel,
    task: Any,
    answers: AnswerSampling,
    *,
    limit: int | None = None,
    progress: Callable[[int], Any] | None = None,
    num_shown: int = 3,
) -> ChatResult:
    """Samples answers, with the calculator at work in nanochat models, and lets the task score them.

    Args:
        task: problems of `nanochat_hf.tasks`.
        answers: how many answers per problem, and how they are sampled.
        limit: takes the first `limit` problems; None takes all. Several processes share the problems.
        progress: called with the number of problems finished after each batch.
        num_shown: the first so many problems are kept with their first answer, for the report.
    """
    rank, world = distributed_rank()
    count = len(task) if limit is None else min(limit, len(task))
    own_indices = list(range(rank, count, world))
    examples = {index: task[index] for index in own_indices}
    prompts = {index: examples[index]["messages"][:-1] for index in own_indices}
    num_chars = {index: sum(len(str(message["content"])) for message in prompts[index]) for index in own_indices}
    longest_first = sorted(own_indices, key=lambda index: -num_chars[index])
    scores = torch.zeros(count, answers.num_samples, dtype=torch.float64)
    shown: list[dict[str, Any]] = []
    per_batch = max(1, answers.batch_size // answers.num_samples)
    prompt_limit, truncated = _prompt_limit(evaluated, answers), 0
    for start in range(0, len(longest_first), per_batch):
        batch = longest_first[start : start + per_batch]
        if prompt_limit:
            truncated += sum(len(evaluated.prompt_ids(prompts[index])) > prompt_limit for index in batch)
        contents = _generate(evaluated, [prompts[index] for index in batch], answers, seed=answers.seed + start)
        for index, samples in zip(batch, contents, strict=True):
            scores[index] = torch.tensor([score_of(task, examples[index], _text_of(content)) for content in samples])
            if index < num_shown:
                sample = {"index": index, "prompt": prompts[index], "answer": _text_of(samples[0])}
                sample["score"] = float(scores[index, 0])
                if not isinstance(samples[0], str):
                    sample["parts"] = samples[0]  # text, tool calls and their results, for the model card
                shown.append(sample)
        if progress:
            progress(len(batch))
    device = next(evaluated.model.parameters()).device
    scores = gather_sum(scores.to(device)).tolist()
    total = int(gather_sum(torch.tensor(float(truncated), device=device)))
    shown.sort(key=lambda item: item["index"])
    digest = _digest(examples.items(), device)
    return ChatResult(task.name, "generative", task.baseline, scores, shown, truncated=total, digest=digest)


def _prompt_limit(evaluated: EvaluatedModel, answers: AnswerSampling) -> int | None:
    """Longest prompt in tokens that leaves room for an answer; None where the context is not known."""
    limit = context_length_of(evaluated.model)
    return limit and limit - max(1, min(answers.sampling.max_new_tokens, limit // 2))


def _generate(evaluated: EvaluatedModel, conversations: list, answers: AnswerSampling, seed: int) -> list[list[Any]]:
    """Answers of every conversation: text, or a list of parts where a tool was used.

    A prompt that leaves no room in the context loses its beginning, so that one long item cannot end an evaluation.
    """
    prompts = [evaluated.prompt_ids(messages) for messages in conversations]
    limit = _prompt_limit(evaluated, answers)
    if limit:
        prompts = [prompt[-limit:] for prompt in prompts]
    options = {"num_samples": answers.num_samples, "seed": seed, "batch_size": answers.batch_size}
    options |= asdict(answers.sampling)
    if evaluated.own_tools is not None:
        rollouts = generate_with_own_tools(evaluated.model, evaluated.own_tools, prompts, **options)
    elif evaluated.is_nanochat:
        rollouts = generate_with_tools(evaluated.model, evaluated.tokenizer, prompts, **options)
    else:
        return _generate_plain(evaluated, prompts, answers, seed)
    return [[_content_of(rollout.messages) for rollout in samples] for samples in rollouts]


def _content_of(messages: Sequence[dict[str, Any]]) -> Any:
    return messages[-1]["content"] if messages and messages[-1]["role"] == "assistant" else ""


def _text_of(content: Any) -> str:
    """An answer as text, tool calls and tool results included."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


@torch.inference_mode()
def _generate_plain(
    evaluated: EvaluatedModel, prompts: list[list[int]], answers: AnswerSampling, seed: int
) -> list[list[str]]:
    """Answers of a model that does not know nanochat's tool tokens, through transformers' `generate`."""
    sampling = answers.sampling
    device = next(evaluated.model.parameters()).device
    longest = max(map(len, prompts))
    pad = evaluated.tokenizer.pad_token_id
    pad = evaluated.tokenizer.eos_token_id if pad is None else pad
    ids = torch.tensor([[pad or 0] * (longest - len(row)) + row for row in prompts], device=device)  # [rows, T]
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=device)
    room = (context_length_of(evaluated.model) or math.inf) - longest  # models with an embedding per position need it
    greedy = sampling.temperature == 0
    drawing = {} if greedy else {"temperature": sampling.temperature, "top_k": sampling.top_k or 0}
    torch.manual_seed(seed)
    output = evaluated.model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=not greedy,
        num_return_sequences=answers.num_samples,
        max_new_tokens=min(sampling.max_new_tokens, room),
        pad_token_id=pad,
        **drawing,
    )
    texts = evaluated.tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
    return [texts[start : start + answers.num_samples] for start in range(0, len(texts), answers.num_samples)]


def summarize(results: Sequence[ChatResult]) -> dict[str, float]:
    """Flat metrics: `chatcore` with its 95 % interval, and `accuracy/TASK` and `pass@K/TASK` of every task."""
    outcomes, baselines = [result.outcomes for result in results], [result.baseline for result in results]
    metrics = mean_centered_of_items("chatcore", outcomes, baselines)
    for result in results:
        row = result.row()
        metrics[f"accuracy/{result.name}"] = row["accuracy"]
        metrics |= {f"{key}/{result.name}": value for key, value in row.items() if key.startswith("pass@")}
    return metrics
