"""The stranger's list: its rules, and its evaluation of a checkpoint at the checkpoint's own sampling."""

import json

import pytest
from trained_chat import make_run

from nanochat_hf.data.microworld import strangers_list
from nanochat_hf.evals.strangers import is_sensible
from nanochat_hf.generation.sampling import read_sampling
from nanochat_hf.settings import UserError
from nanochat_hf.stages.evaluate import main


@pytest.mark.parametrize(
    "rules, good, bad",
    [
        ({"any": ["hello", "hi"]}, "Hello! How can I help you?", "This is nothing."),  # hi is not in This
        ({"all": ["Henrietta"]}, "Your name is henrietta.", "Your name is Hen."),
        ({"none": ["yaffle"]}, "You are welcome!", "The yaffle is a bug."),
        ({"number": 896}, "128 * 7 = 896", "128 * 7 = 8960"),
        ({"number": 896}, "It is 896.0", "896 is not 12"),
        ({"spells": "tree"}, "t-r-e-e", "t-r-e-e-s"),
        ({"spells": "tree"}, "It is T, R, E, E.", "s-t-r-e-e"),
        ({"any": ["x"]}, "x", "x " * 61),
        ({"any": ["x"]}, "x", ""),
    ],
)
def test_rules(rules, good, bad):
    assert is_sensible(rules, good) and not is_sensible(rules, bad)


def test_wrong_sampling_is_refused():
    assert read_sampling(["temperature=0.3", "top_k=5"], "--stranger_sampling") == {"temperature": 0.3, "top_k": 5}
    with pytest.raises(UserError, match="stranger_sampling has heat=3"):
        read_sampling(["heat=3"], "--stranger_sampling")


def test_a_checkpoint_is_evaluated_at_its_own_sampling(tmp_path, monkeypatch, capsys):
    items = (
        {"kind": "greetings", "says": ["hi"], "any": ["hello"]},
        {"kind": "names", "says": ["I am Bob.", "Who am I?"], "all": ["Bob"]},
    )
    monkeypatch.setattr(strangers_list, "items", lambda: items)
    run = make_run(tmp_path / "run")
    path = run / "rl" / "generation_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"do_sample": True, "temperature": 0.25, "top_p": 0.9, "top_k": 0}))
    main(["strangers", "--checkpoints", str(run / "rl"), "--stranger_samples", "2"])
    result = json.loads((run / "rl" / "eval" / "strangers.json").read_text())
    assert result["details"]["sampling"] == {"temperature": 0.25, "top_k": 0, "top_p": 0.9, "min_p": None}
    assert [row["task"] for row in result["details"]["tasks"]] == ["greetings", "names"]
    talks = result["details"]["conversations"]
    assert len(talks) == 4
    assert [message["role"] for message in talks[-1]["messages"]] == ["user", "assistant"] * 2
    assert "names" in capsys.readouterr().out
