"""Chat tasks: exams by logits, problems by samples, prompts of other models."""

import copy
import itertools
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from nanochat_hf.evals import runner, tasks
from nanochat_hf.evals.evaluated_model import EvaluatedModel
from nanochat_hf.evals.evaluation_config import check_evaluation
from nanochat_hf.evals.runner import EvaluationConfig, answer_sampling, load_tasks, result_table
from nanochat_hf.generation import Sampling
from nanochat_hf.settings import UserError


class Exam:
    name, kind, baseline = "exam", "choice", 0.25

    def __init__(self, count):
        self.examples = [
            {
                "messages": [
                    {"role": "user", "content": f"Question {'so ' * (i % 7)}{i}?"},
                    {"role": "assistant", "content": "B"},
                ],
                "letters": list("ABCD")[: 2 + i % 3],
                "answer": "B",
            }
            for i in range(count)
        ]

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]

    def score(self, example, text):
        return float(text == example["answer"])


class Problems(Exam):
    name, kind, baseline = "problems", "generative", 0.0

    def score(self, example, text):
        """Right where the answer begins with a byte below 128: about half of a random model's."""
        return float(bool(text) and ord(text[0]) < 128)


@pytest.fixture(scope="module")
def byte_tokenizer():
    """A tokenizer of single bytes without a chat template, like that of a base model from the Hub."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<s>")


@pytest.fixture(scope="module")
def templated(tiny_model, byte_tokenizer):
    """A foreign chat model with a template of its own."""
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
    return EvaluatedModel("foreign", tiny_model, tokenizer)


def test_choice_equals_one_prompt_at_a_time(templated):
    exam = Exam(17)
    expected = []
    for example in exam.examples:
        text = f"[user] {example['messages'][0]['content']}\n[assistant]"
        ids = templated.tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = templated.model(torch.tensor([ids])).logits[0, -1]
        letters = [templated.tokenizer.convert_tokens_to_ids(letter) for letter in example["letters"]]
        expected.append(float(example["letters"][logits[letters].argmax()] == "B"))
    assert 0 < sum(expected) < len(expected)
    for max_tokens in (1, 200, 100000):
        result = tasks.evaluate_choice(templated, exam, max_tokens=max_tokens)
        assert result.outcomes == expected
    assert tasks.evaluate_choice(templated, exam, limit=5).outcomes == expected[:5]


def test_generative_samples_and_pass_at_k(templated):
    sampling = tasks.AnswerSampling(Sampling(max_new_tokens=3, temperature=1.0), num_samples=4, batch_size=8)
    result = tasks.evaluate_generative(templated, Problems(10), sampling)
    assert [len(item) for item in result.scores] == [4] * 10
    assert len({tuple(item) for item in result.scores}) > 1, "samples of a prompt must differ"
    row = result.row()
    assert set(row) >= {"pass@2", "pass@4"} and row["accuracy"] < row["pass@2"] < row["pass@4"]
    best_of_two = [max(pair) for item in result.scores for pair in itertools.combinations(item, 2)]
    assert row["pass@2"] == pytest.approx(sum(best_of_two) / len(best_of_two))
    again = tasks.evaluate_generative(templated, Problems(10), sampling)
    assert again.scores == result.scores, "the seed makes a result repeatable"
    assert [sample["index"] for sample in result.samples] == [0, 1, 2]


def test_prompts_without_a_template_are_plain_text(tiny_model, byte_tokenizer):
    evaluated = EvaluatedModel("base", tiny_model, byte_tokenizer)
    assert evaluated.prompt_style == "plain text"
    ids = evaluated.prompt_ids([{"role": "user", "content": "Hi"}])
    assert byte_tokenizer.decode(ids[1:]) == "User: Hi\n\nAssistant:" and ids[0] == byte_tokenizer.bos_token_id
    with pytest.raises(UserError, match="' A' is 2 tokens"):
        tasks.evaluate_choice(evaluated, Exam(2))


def test_prompts_of_other_models_have_neither_parts_nor_a_system_message_that_is_refused(
    templated, tiny_model, byte_tokenizer
):
    """As in training: calls become text, and a system message stands before the user's where there are none."""
    parts = [("text", "It is "), ("python", "2*3"), ("python_output", "6"), ("text", "6.")]
    messages = [
        {"role": "system", "content": "Be nice."},
        {"role": "user", "content": "2*3?"},
        {"role": "assistant", "content": [{"type": kind, "text": text} for kind, text in parts]},
        {"role": "user", "content": "Thanks."},
    ]
    base = EvaluatedModel("base", tiny_model, byte_tokenizer)
    asked = byte_tokenizer.decode(base.prompt_ids(messages)[1:])
    assert asked == "System: Be nice.\n\nUser: 2*3?\n\nAssistant: It is 6.\n\nUser: Thanks.\n\nAssistant:"
    tokenizer = copy.deepcopy(templated.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
        "[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
    )
    asked = tokenizer.decode(EvaluatedModel("strict", tiny_model, tokenizer).prompt_ids(messages))
    assert asked == "[user] Be nice.\n\n2*3?\n[assistant] It is 6.\n[user] Thanks.\n[assistant]"


def test_control_tokens_in_texts_stay_text(tiny_model, byte_tokenizer):
    evaluated = EvaluatedModel("base", tiny_model, byte_tokenizer)
    (ids,) = evaluated.encode(["a</s>b"])
    assert byte_tokenizer.eos_token_id not in ids and len(ids) == 1 + len("a</s>b")


def test_long_prompts_lose_their_beginning(templated):
    conversation = [{"role": "user", "content": "x" * 5000}]
    sampling = tasks.AnswerSampling(Sampling(max_new_tokens=2, temperature=0))
    answers = tasks._generate(templated, [conversation], sampling, seed=0)
    assert len(answers) == 1 and len(answers[0]) == 1


def test_prompts_that_lose_their_beginning_are_counted_and_said(templated):
    """Of seven questions, those with the most "so " are too long."""
    exam, problems = Exam(7), Problems(7)
    lengths = sorted(len(templated.prompt_ids(example["messages"][:-1])) for example in exam.examples)
    assert tasks.evaluate_choice(templated, exam, max_length=lengths[4]).row()["truncated"] == 2
    assert tasks.evaluate_choice(templated, exam).row()["truncated"] == 0
    problems.examples[3]["messages"][0]["content"] = "x" * 5000
    result = tasks.evaluate_generative(
        templated, problems, tasks.AnswerSampling(Sampling(max_new_tokens=2, temperature=0))
    )
    assert result.row()["truncated"] == 1
    table = {"metrics": tasks.summarize([result]), "details": {"tasks": [result.row()]}}
    assert "7 items, 1 too long for the context: their beginning is cut" in result_table(table)


def test_an_answer_ends_where_the_context_ends(byte_tokenizer):
    """GPT-2 has an embedding per position, and none beyond its context."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=260, n_embd=16, n_layer=1, n_head=1, n_positions=32))
    evaluated = EvaluatedModel("gpt2", model, byte_tokenizer)
    problems = Problems(2)
    problems.examples[1]["messages"][0]["content"] = "x" * 50
    result = tasks.evaluate_generative(
        evaluated, problems, tasks.AnswerSampling(Sampling(max_new_tokens=40, temperature=0))
    )
    assert len(result.scores) == 2


def test_a_bad_item_is_named_before_any_task_is_scored(tiny_model, byte_tokenizer, monkeypatch):
    """An hour of answers would be lost where the exam after them cannot be scored."""
    evaluated = EvaluatedModel("base", tiny_model, byte_tokenizer)
    monkeypatch.setattr(runner, "load_tasks", lambda config: [Problems(1), Exam(2)])
    monkeypatch.setattr(tasks, "evaluate_generative", lambda *_, **__: pytest.fail("a task was scored"))
    with pytest.raises(UserError, match="' A' is 2 tokens"):
        runner.run_chat(evaluated, EvaluationConfig())


def test_tasks_of_one_name_are_told_apart(tmp_path, monkeypatch):
    """Results are kept by name, so one would replace the other."""
    monkeypatch.chdir(tmp_path)
    for name in ("old", "new"):
        Path(f"{name}.jsonl").write_text('{"question": "a", "answer": "b"}\n', encoding="utf-8")
    specs = ["conversations=old.jsonl", f"conversations={tmp_path}/new.jsonl", "microworld-chat@3"]
    names = [task.name for task in load_tasks(EvaluationConfig(tasks=specs))]
    assert names == ["conversations=old.jsonl", "conversations=new.jsonl", "microworld-chat"]
    assert [task.name for task in load_tasks(EvaluationConfig(tasks=specs[1:]))] == ["conversations", names[2]]
    with pytest.raises(UserError, match="two tasks are called conversations=old.jsonl; leave one out"):
        load_tasks(EvaluationConfig(tasks=[specs[0], specs[0]]))


def test_an_evaluation_repeats_no_example():
    with pytest.raises(UserError, match=r"'microworld-chat@3\*2' .* once: leave out \*2"):
        check_evaluation(EvaluationConfig(tasks=["microworld-chat@3*2"], checkpoints=["a/b"]), ["chat"])


def test_chatcore_is_the_mean_of_centered_scores():
    results = [
        tasks.ChatResult("a", "choice", 0.25, [[1.0], [1.0], [0.0], [0.0]]),
        tasks.ChatResult("b", "generative", 0.0, [[1.0, 0.0], [0.0, 0.0]]),
    ]
    metrics = tasks.summarize(results)
    assert metrics["chatcore"] == pytest.approx(((0.5 - 0.25) / 0.75 + 0.25) / 2)
    assert metrics["accuracy/b"] == 0.25 and metrics["pass@2/b"] == 0.5
    assert metrics["chatcore_low"] <= metrics["chatcore"] <= metrics["chatcore_high"]


def test_generated_code_is_not_run_without_permission():
    config = EvaluationConfig(tasks=["microworld-code@2"])
    with pytest.raises(UserError, match="--allow_code_execution"):
        load_tasks(config)
    config.allow_code_execution = True
    assert len(load_tasks(config)[0]) == 2


@pytest.mark.parametrize("specs", [[], [""], [" "]])
def test_no_tasks_is_a_clear_mistake(specs):
    with pytest.raises(UserError, match="no chat tasks"):
        load_tasks(EvaluationConfig(tasks=specs))
    with pytest.raises(UserError, match="no chat tasks"):
        check_evaluation(EvaluationConfig(tasks=specs, checkpoints=["a/b"]), ["chat"])


def test_a_task_without_items_is_named(templated):
    with pytest.raises(UserError, match="the task problems has no items"):
        tasks.check_items(templated, Problems(0))


def test_many_greedy_samples_are_refused():
    with pytest.raises(UserError, match="--temperature"):
        tasks.AnswerSampling(num_samples=4)


def test_the_settings_of_the_scripts_reach_the_sampling():
    config = EvaluationConfig(num_samples=3, temperature=0.7, top_k=5, max_new_tokens=9, batch_size=6, seed=11)
    expected = tasks.AnswerSampling(Sampling(9, 0.7, 5), num_samples=3, batch_size=6, seed=11)
    assert answer_sampling(config) == expected
    greedy = Sampling(max_new_tokens=512, temperature=0.0, top_k=50)
    assert answer_sampling(EvaluationConfig()) == tasks.AnswerSampling() == tasks.AnswerSampling(greedy, 1, 32, 0)
    with pytest.raises(UserError, match="--temperature must be 0"):
        answer_sampling(EvaluationConfig(temperature=-1.0))
