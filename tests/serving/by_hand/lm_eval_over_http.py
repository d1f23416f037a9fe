"""lm-eval's `local-completions` against a running server, beside its `hf` model: the same numbers.

pip install 'lm-eval[api,hf]'      # in an environment that has nanochat-hf, too
nanochat-hf serve runs/quickstart/rl --port 8000
python tests/serving/by_hand/lm_eval_over_http.py runs/quickstart/rl http://localhost:8000
"""

import json
import sys
import tempfile
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

import nanochat_hf  # noqa: F401  registers the model

PLACES = ("mill", "pond", "hall", "baker")
TASKS = {
    "choices": """
output_type: multiple_choice
doc_to_text: "The {{a}} is near the"
doc_to_choice: ["{{b}}", "bridge", "market"]
doc_to_target: 0
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "texts": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "The {{a}} is near the {{b}}. People there make bread."
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
""",
    "answers": """
output_type: generate_until
doc_to_text: "The {{a}} is near the"
doc_to_target: "{{b}}"
generation_kwargs: {until: ["."], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


def main() -> None:
    checkpoint, address = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        rows = [{"a": a, "b": b} for a in PLACES for b in PLACES if a != b]
        Path(folder, "rows.json").write_text(json.dumps(rows))
        for name, task in TASKS.items():
            head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {folder}/rows.json}}\n"
            Path(folder, f"{name}.yaml").write_text(f"{head}test_split: train{task}")
        manager = TaskManager(include_path=folder, include_defaults=False)
        over_http = (
            f"model=any,base_url={address}/v1/completions,num_concurrent=8,max_length=256,tokenizer={checkpoint}"
        )
        models = {
            "hf": dict(model="hf", model_args=f"pretrained={checkpoint},device=cpu,max_length=256", batch_size=1),
            "local-completions": dict(model="local-completions", model_args=over_http, batch_size=4),
        }
        scores = {}
        for name, model in models.items():
            made = simple_evaluate(tasks=[*TASKS], task_manager=manager, bootstrap_iters=0, log_samples=True, **model)
            scores[name] = {
                (task, sample["doc_id"], index): response[0]
                for task, samples in made["samples"].items()
                for sample in samples
                for index, response in enumerate(sample["resps"])
            }
            print(name, {task: {k: v for k, v in made["results"][task].items() if "," in k} for task in TASKS})
    worst, differ = 0.0, 0
    for key, ours in scores["local-completions"].items():
        theirs = scores["hf"][key]
        if isinstance(ours, str):
            differ += ours != theirs
            continue
        one, other = (each if isinstance(each, tuple | list) else (each, "") for each in (ours, theirs))
        worst, differ = max(worst, abs(one[0] - other[0])), differ + (str(one[1]) != str(other[1]))
    print(f"{len(scores['hf'])} responses, log-likelihoods differ by at most {worst:.2g}, {differ} others differ")
    assert worst < 1e-3 and not differ


if __name__ == "__main__":
    main()
