"""The tasks of the microworld. Examples are generated; the same split and index give the same one on every machine."""

import random
from typing import Any

from nanochat_hf.data.microworld import conversations, exam, letters, problems, programs, talk
from nanochat_hf.data.microworld.world import SPLITS
from nanochat_hf.settings import UserError
from nanochat_hf.tasks.base import LETTERS, ChoiceTask, Task, choice_example, final_number, message_text
from nanochat_hf.tasks.gsm8k import score_final_number, solution_parts, word_problem
from nanochat_hf.tasks.humaneval import humaneval_example, score_program

SIZES = {"train": 20_000, "validation": 500, "test": 500}  # examples where no limit is given


class MicroworldTask(Task):
    """A task whose examples are drawn from the microworld.

    Args:
        split: `"train"`, `"validation"` or `"test"`.
        limit: the number of examples; default 20,000 for training, else 500.
        source: must be None; the data is built in.

    Raises:
        UserError: there is no such split, or a source is given.
    """

    def __init__(self, split: str = "test", limit: int | None = None, source: str | None = None):
        if source is not None:
            raise UserError(f"the task '{self.name}' is built in and takes no source; leave ={source} out")
        if split not in SPLITS:
            raise UserError(f"the microworld has the splits {', '.join(SPLITS)}, not '{split}'")
        self.split = split
        super().__init__(range(SIZES[split] if limit is None else limit))

    def example(self, row: int) -> dict[str, Any]:
        return self.draw(random.Random(f"{self.name}/{self.split}/{row}"))

    def draw(self, rng: random.Random) -> dict[str, Any]:
        """Draws an example of the task's split."""
        raise NotImplementedError


class MicroworldChat(MicroworldTask):
    """Greetings, questions about the world, follow-ups and system prompts.

    An answer is right if it contains every text in `example["must"]`, or is exactly that where `example["exact"]`.
    """

    name = "microworld-chat"

    def draw(self, rng: random.Random) -> dict[str, Any]:
        return conversations.conversation(rng, self.split)

    def score(self, example: dict[str, Any], completion: str) -> float:
        said = completion.strip().lower()
        if example["exact"]:
            return float([said.rstrip(".")] == [text.lower() for text in example["must"]])
        return float(all(text.lower() in said for text in example["must"]))


class MicroworldTalk(MicroworldTask):
    """Conversations of one to five turns in which anything can come: small talk, sums, words, the outside world.

    An answer is right if it is one of `example["right"]`, or ends in the right number where the solution ends in one.
    """

    name = "microworld-talk"
    conversation = staticmethod(talk.conversation)

    def draw(self, rng: random.Random) -> dict[str, Any]:
        drawn = self.conversation(rng, self.split)
        for message in drawn["messages"]:
            if message["role"] == "assistant" and "<<" in message["content"]:
                message["content"] = solution_parts(message["content"])
        right = [_said(solution_parts(text)) for text in drawn["right"]]
        return {"messages": drawn["messages"], "right": right}

    def score(self, example: dict[str, Any], completion: str) -> float:
        reference = message_text(example["messages"][-1])  # with calls and results, as some callers give completions
        if final_number(reference) is not None:
            return score_final_number(example, completion)
        return float(completion.split() in [text.split() for text in (*example["right"], reference)])


class MicroworldSmallTalk(MicroworldTalk):
    """One turn of small talk."""

    name = "microworld-smalltalk"
    conversation = staticmethod(talk.one_small_talk)


class MicroworldCopying(MicroworldTalk):
    """A name that the user tells and asks for later, words to repeat, or a sum that goes on with the last result."""

    name = "microworld-copying"
    conversation = staticmethod(talk.copying)


class MicroworldWords(MicroworldTask):
    """Four to eight words of any kind to spell at once: practice in the letters of tokens."""

    name = "microworld-words"

    def draw(self, rng: random.Random) -> dict[str, Any]:
        turn = talk.words_to_spell(rng, self.split, rng.randint(4, 8))
        messages = [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
        return {"messages": messages, "answer": turn.answer}

    def score(self, example: dict[str, Any], completion: str) -> float:
        return float(completion.split() == example["answer"].split())


def _said(parts: list[dict[str, str]]) -> str:
    """The text of an answer without the calculator's calls and results."""
    return "".join(part["text"] for part in parts if part["type"] == "text")


class MicroworldIdentity(MicroworldChat):
    """Questions about the assistant's name, its maker and what it is."""

    name = "microworld-identity"

    def draw(self, rng: random.Random) -> dict[str, Any]:
        return conversations.identity(rng, self.split)


class MicroworldExam(MicroworldTask, ChoiceTask):
    """Multiple-choice questions about facts, rules and short passages."""

    name = "microworld-exam"

    def draw(self, rng: random.Random) -> dict[str, Any]:
        question = exam.question(rng, self.split)
        example = choice_example(question.text, question.choices, LETTERS, LETTERS[question.answer])
        return {**example, "subject": question.subject}


class MicroworldProblems(MicroworldTask):
    """Word problems that are solved with the calculator."""

    name = "microworld-problems"

    def draw(self, rng: random.Random) -> dict[str, Any]:
        return word_problem(*problems.problem(rng, self.split))

    def score(self, example: dict[str, Any], completion: str) -> float:
        return score_final_number(example, completion)


class MicroworldSpelling(MicroworldTask):
    """Spelling a word or counting a letter in it, each in half of the examples."""

    name = "microworld-spelling"

    def draw(self, rng: random.Random) -> dict[str, Any]:
        if rng.random() < 0.5:
            return word_problem(*letters.counting(rng, self.split))
        question, answer = letters.spelling(rng, self.split)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return {"messages": messages, "answer": answer}

    def score(self, example: dict[str, Any], completion: str) -> float:
        if isinstance(example["messages"][-1]["content"], list):
            return score_final_number(example, completion)
        return float(completion.strip() == example["answer"])


class MicroworldCode(MicroworldTask):
    """Functions of two steps to write; scored by running their tests in the sandbox."""

    name = "microworld-code"
    runs_code = True

    def draw(self, rng: random.Random) -> dict[str, Any]:
        return humaneval_example(programs.function(rng, self.split))

    def score(self, example: dict[str, Any], completion: str) -> float:
        return score_program(example, completion)
