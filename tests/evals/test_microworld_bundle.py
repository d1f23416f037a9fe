from byte_tokens import encode_bytes

from nanochat_hf.evals import core
from nanochat_hf.evals.bundle import load_bundle
from nanochat_hf.evals.microworld_bundle import TASKS, write_bundle


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_bundle_is_repeatable_and_well_formed(tmp_path):
    first, second = write_bundle(tmp_path / "a", items=30), write_bundle(tmp_path / "b", items=30)
    assert contents(first) == contents(second)
    assert contents(first) != contents(write_bundle(tmp_path / "c", items=30, seed=1))
    for task in load_bundle(first):
        assert len(task.items) == 30 and task.published_baseline == task.corrected_baseline
        for item in task.items:
            options = item.get("choices") or item.get("context_options") or ["one"]
            assert len(set(options)) == len(options)
            assert "{" not in str(item.get("query", item.get("context", "")))


def test_every_task_can_be_evaluated(tmp_path, tiny_model):
    results = [
        core.evaluate_task(tiny_model, encode_bytes, task)
        for task in load_bundle(write_bundle(tmp_path), max_per_task=4)
    ]
    metrics = core.summarize(results)
    assert [result.task.label for result in results] == list(TASKS)
    assert {f"accuracy/{label}" for label in TASKS} < metrics.keys() and -1 <= metrics["microworld_completion"] <= 1
    centered = [result.row()["centered"] for result in results]
    assert metrics["microworld_completion"] == sum(centered) / 4, "computed like CORE"
    assert not [name for name in metrics if name.startswith("core")], "but it is not called CORE"
