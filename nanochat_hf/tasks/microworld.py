"""The tasks of the microworld: made on the fly, the same item for the same split and index, on every machine."""

import random
from typing import Any

from nanochat_hf.data.microworld import conversations, exam, lessons, problems
from nanochat_hf.data.microworld.world import SPLITS
from nanochat_hf.settings import UserError
from nanochat_hf.tasks.common import LETTERS, ChoiceTask, Task, choice_example
from nanochat_hf.tasks.gsm8k import score_final_number, word_problem
from nanochat_hf.tasks.humaneval import humaneval_example, score_program

SIZES = {"train": 20_000, "validation": 500, "test": 500}  # examples of a task without a limit


class MicroworldTask(Task):
    """Args: `split` train, validation or test; `limit` the number of examples."""

    def __init__(self, split: str = "test", limit: int | None = None):
        if split not in SPLITS:
            raise UserError(f"the microworld has the splits {', '.join(SPLITS)}, not '{split}'")
        self.split = split
        super().__init__(range(SIZES[split] if limit is None else limit))

    def example(self, row: int) -> dict[str, Any]:
        return self.draw(random.Random(f"{self.name}/{self.split}/{row}"))

    def draw(self, rng: random.Random) -> dict[str, Any]:
        """Makes an example of the task's split."""
        raise NotImplementedError


class MicroworldChat(MicroworldTask):
    """Greetings, questions about the world, follow-ups, system prompts. Right is an answer with all it must say."""

    name = "microworld-chat"

    def draw(self, rng: random.Random) -> dict[str, Any]:
        return conversations.conversation(rng, self.split)

    def score(self, example: dict[str, Any], completion: str) -> float:
        said = completion.strip().lower()
        if example["exact"]:
            return float([said.rstrip(".")] == [text.lower() for text in example["must"]])
        return float(all(text.lower() in said for text in example["must"]))


class MicroworldIdentity(MicroworldChat):
    """The assistant's name, its maker and what it is."""

    name = "microworld-identity"

    def draw(self, rng: random.Random) -> dict[str, Any]:
        return conversations.identity(rng, self.split)


class MicroworldExam(MicroworldTask, ChoiceTask):
    """Multiple choice: facts, rules, and short passages."""

    name = "microworld-exam"

    def draw(self, rng: random.Random) -> dict[str, Any]:
        question = exam.question(rng, self.split)
        example = choice_example(question.text, question.choices, LETTERS, LETTERS[question.answer])
        return {**example, "subject": question.subject}


class MicroworldProblems(MicroworldTask):
    """Word problems, to be solved with the calculator."""

    name = "microworld-problems"

    def draw(self, rng: random.Random) -> dict[str, Any]:
        return word_problem(*problems.problem(rng, self.split))

    def score(self, example: dict[str, Any], completion: str) -> float:
        return score_final_number(example, completion)


class MicroworldSpelling(MicroworldTask):
    """Half spelling, half counting letters."""

    name = "microworld-spelling"

    def draw(self, rng: random.Random) -> dict[str, Any]:
        if rng.random() < 0.5:
            return word_problem(*lessons.counting(rng, self.split))
        question, answer = lessons.spelling(rng, self.split)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return {"messages": messages, "answer": answer}

    def score(self, example: dict[str, Any], completion: str) -> float:
        if isinstance(example["messages"][-1]["content"], list):
            return score_final_number(example, completion)
        return float(completion.strip() == example["answer"])


class MicroworldCode(MicroworldTask):
    """Functions of two steps, run with their tests in the sandbox."""

    name = "microworld-code"
    runs_code = True

    def draw(self, rng: random.Random) -> dict[str, Any]:
        return humaneval_example(lessons.function(rng, self.split))

    def score(self, example: dict[str, Any], completion: str) -> float:
        return score_program(example, completion)


def make(kind: str, split: str = "test", limit: int | None = None) -> MicroworldTask:
    """Makes the task `microworld-<kind>`."""
    tasks = (
        MicroworldChat,
        MicroworldIdentity,
        MicroworldExam,
        MicroworldProblems,
        MicroworldSpelling,
        MicroworldCode,
    )
    for task in tasks:
        if task.name == f"microworld-{kind}":
            return task(split, limit)
    raise UserError(f"the microworld has no task '{kind}'; it has {', '.join(task.name for task in tasks)}")
