"""Completion tasks made of text: the right continuation follows the passage, the wrong ones come from elsewhere."""

import pytest
from byte_tokens import encode_bytes

from nanochat_hf.evals import core
from nanochat_hf.evals.bundle import load_bundle
from nanochat_hf.evals.evaluation_config import EvaluationConfig
from nanochat_hf.evals.runner import leave_out_completion
from nanochat_hf.evals.text_bundle import CHOICE_WORDS, QUERY_WORDS, write_bundle
from nanochat_hf.settings import UserError


@pytest.fixture
def texts() -> list[str]:
    """Six documents in which every word says where it stands."""
    return [" ".join(f"{name}{place}" for place in range(130 + 40 * number)) for number, name in enumerate("abcdef")]


def test_the_right_continuation_follows_and_the_wrong_ones_come_from_elsewhere(texts, tmp_path):
    other, same = load_bundle(write_bundle(tmp_path, texts, items=60))
    assert (other.label, same.label) == ("text_other", "text_same")
    for task in (other, same):
        assert len(task.items) == 60 and task.published_baseline == task.corrected_baseline == 0.25
        for item in task.items:
            document, query = item["query"][0], item["query"].split()
            right = item["choices"][item["gold"]]
            assert f"{item['query']} {right}" in texts["abcdef".index(document)] and len(query) == QUERY_WORDS
            wrong = [choice for choice in item["choices"] if choice != right]
            assert len(wrong) == 3 and all(len(choice.split()) == CHOICE_WORDS for choice in item["choices"])
            words = [word for choice in wrong for word in choice.split()]
            assert all((word[0] == document) == (task is same) for word in words)
            assert not set(words) & {*query, *right.split()}, "no part of the passage is repeated"
    golds = {item["gold"] for item in same.items}
    assert golds == {0, 1, 2, 3}


def test_the_same_text_gives_the_same_bytes_and_short_documents_are_left_out(texts, tmp_path):
    def written(name: str, documents: list[str]) -> dict[str, bytes]:
        folder = write_bundle(tmp_path / name, documents, items=10)
        return {path.name: path.read_bytes() for path in folder.rglob("*.*")}

    assert written("one", texts) == written("two", [*texts, "too short", ""])
    with pytest.raises(UserError, match="the validation text has 3 documents of 50 words, the longest with"):
        write_bundle(tmp_path / "few", texts[:3])


def test_too_little_text_leaves_out_this_evaluation_and_no_other(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"text": "one two three"}\n' * 30)
    config = EvaluationConfig(data=str(tmp_path / "a.jsonl"), core_bundle="text")
    assert leave_out_completion(["bits_per_byte", "core", "chat"], config) == ["bits_per_byte", "chat"]
    assert "warning: the text completion tasks are left out: the validation text has 0" in capsys.readouterr().out
    assert leave_out_completion(["core"], config) == ["core"], "asked for alone, it ends with the error"
    config.data = str(tmp_path / "missing")
    with pytest.raises(UserError, match="no data at"):
        leave_out_completion(["core", "chat"], config)


def test_the_mean_has_a_name_of_its_own(texts, tmp_path, tiny_model):
    tasks = load_bundle(write_bundle(tmp_path, texts, items=4))
    metrics = core.summarize([core.evaluate_task(tiny_model, encode_bytes, task) for task in tasks])
    assert {"text_completion", "accuracy/text_other", "accuracy/text_same"} < metrics.keys()
    assert not [name for name in metrics if name.startswith("core")]
