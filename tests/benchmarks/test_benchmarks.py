"""Every benchmark in miniature: its tables are printed, its documented commands parse, bad input is named.

The scripts run inside this process, because importing torch and transformers takes longer than the work itself. No
test looks at a speed.
"""

import importlib.util
import json
import os
import re
import shlex
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from nanochat_hf import openmp
from nanochat_hf.data.sources import open_documents
from nanochat_hf.settings import UserError

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "benchmark_tools")
SHAPE = ["--depth", "1", "--head_dim", "16", "--sequence_length", "32", "--window_pattern", "L"]


@pytest.fixture
def script(monkeypatch):
    """Loads a benchmark as a module and sets its command line; restores what a benchmark sets in its process."""
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None

    def load(name, *arguments):
        path = FOLDER / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    torch.set_num_threads(threads)
    if cores is not None:
        os.sched_setaffinity(0, cores)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A folder of two parquet shards from the microworld."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("shards")
    texts = open_documents("microworld").next_batch(1200)
    for number in range(2):
        table = pa.table({"text": texts[number::2]})
        pq.write_table(table, folder / f"shard_{number:05d}.parquet", row_group_size=100)
    return folder


def rows_of(text):
    """Rows of Markdown tables as lists of cells."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def number(cell):
    return float(cell.replace(",", "").rstrip("%"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_documented_commands_parse(script, name, shards, tmp_path, capsys):
    """Each line of the docstring that can be pasted, with a real folder for each placeholder."""
    checkout = tmp_path / "nanochat_checkout"
    for file in ("nanochat/dataloader.py", "nanochat/core_eval.py", "nanochat/engine.py", "scripts/base_train.py"):
        (checkout / file).parent.mkdir(parents=True, exist_ok=True)
        (checkout / file).touch()
    doc = script(name).__doc__
    commands = re.findall(rf"^    python benchmarks/{name}\.py(.*)$", doc.replace("\\\n", " "), re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        words = shlex.split(command, comments=True)
        known = {"NANOCHAT_CHECKOUT": checkout, "DATA_FOLDER": shards}
        options = script(name, *(known.get(word, word) for word in words)).parse_arguments()
        if "--upstream" in words:
            assert options.upstream == checkout.resolve()
        elif "upstream" in vars(options) and not {"--continuous", "--arms"} & set(words):  # these leave it out
            assert "upstream is not measured" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["dataloader", "evaluation", "generation", "pretrain", "quality"])
def test_a_folder_that_is_no_checkout_of_upstream_is_named(script, name, shards, tmp_path):
    data = [] if name in ("evaluation", "generation") else ["--data", shards]
    with pytest.raises(UserError, match="is not a checkout of nanochat.*clone it"):
        script(name, "--upstream", tmp_path, *data).parse_arguments()


def test_a_vocabulary_that_the_text_cannot_fill_is_named(script):
    with pytest.raises(UserError, match="or a vocab_size of at most"):
        script("evaluation", "--vocab_size", "4096").main()


def test_dataloader(script, shards, capsys):
    sizes = ["--batch_size", 2, "--sequence_length", 64, "--seconds", 0.1, "--documents", 200, "--vocab_size", 400]
    script("dataloader", "--data", shards, *sizes).main()
    output = capsys.readouterr().out
    rows = rows_of(output)
    assert {row[0] for row in rows if len(row) == 3} >= {"best_fit", "keep_tails"}
    kept = {(row[0], row[1]): number(row[2]) for row in rows if len(row) == 5 and row[0].isdigit()}
    assert len(kept) == 6 and all(0 < share <= 100 for share in kept.values())
    assert kept["64", "keep_tails"] > kept["64", "best_fit"], "short rows crop, unless tails are kept"
    assert "all readers give the same texts" in output
    readers = {row[0]: row for row in rows if len(row) == 4 and row[0].startswith(("ours", "datasets"))}
    assert set(readers) == {"ours", "datasets, row by row", "datasets, 128 rows at a time"}
    assert all(number(row[1]) > 0 and number(row[2]) > 0 for row in readers.values())
    assert readers["ours"][3] == "1.00×"


def test_evaluation_agrees_with_one_item_per_forward_pass(script, tmp_path, capsys):
    """Upstream's module is replaced by an evaluation of one item at a time, so that the comparison runs without it."""
    (tmp_path / "nanochat").mkdir()
    (tmp_path / "nanochat" / "__init__.py").touch()
    (tmp_path / "nanochat" / "core_eval.py").write_text(
        "import torch\n"
        "from nanochat_hf.evals import core\n"
        "from nanochat_hf.evals.bundle import CoreTask\n\n"
        "def evaluate_example(index, model, tokenizer, data, device, meta):\n"
        "    shots, delimiter = meta['num_fewshot'], meta['continuation_delimiter']\n"
        "    task = CoreTask('t', meta['task_type'], shots, delimiter, 0.0, data)\n"
        "    texts = core.render(task, data[index], core.fewshot_examples(task, index))\n"
        "    scores = []\n"
        "    for span in core.spans_of(task, tokenizer(texts, prepend=tokenizer.get_bos_token_id())):\n"
        "        logits = model(torch.tensor([span.ids], device=device))[0].float()\n"
        "        losses = -logits.log_softmax(-1)[range(len(span.ids) - 1), span.ids[1:]][span.start - 1 :]\n"
        "        best = logits[span.start - 1 : -1].argmax(-1).tolist()\n"
        "        scores.append(core.SpanScore(losses.mean().item(), best == span.ids[span.start :]))\n"
        "    return core.is_correct(task, data[index], scores)\n"
    )
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "__init__.py").touch()
    (tmp_path / "scripts" / "chat_eval.py").write_text(
        "import torch\n\n"
        "def run_categorical_eval(task, tokenizer, model, batch_size):\n"
        "    for index in range(len(task)):\n"
        "        ids = torch.tensor([tokenizer.render_for_completion(task[index])], device=model.get_device())\n"
        "        letters = task[index]['letters']\n"
        "        scores = model(ids)[0, -1, [tokenizer.encode(letter)[0] for letter in letters]]\n"
        "        task.evaluate(task[index], letters[scores.argmax().item()])\n"
        "    print('Final')\n"
    )
    sizes = ["--depth", 2, "--width", 64, "--max_per_task", 6, "--device", "cpu"]
    try:
        script("evaluation", "--upstream", tmp_path, *sizes, "--exams", "microworld-exam").main()
        with pytest.raises(UserError, match="give --max_per_task 3 or more"):
            script("evaluation", "--upstream", tmp_path, "--max_per_task", 2).main()
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] in ("nanochat", "scripts")]:
            del sys.modules[name]
    lines = capsys.readouterr().out.splitlines()
    (exam,) = [line.split() for line in lines if line.startswith("microworld-exam")]
    assert exam[1] == "6" and float(exam[2]) >= 1 and exam[-1] == "6/6"
    tasks = [line.split() for line in lines if line.startswith("microworld_")]
    assert len(tasks) == 4 and all(row[-1] == "6/6" for row in tasks), "\n".join(lines)
    bounds = {row[0]: float(row[2]) for row in tasks}
    assert bounds["microworld_recall"] == 1.0 and bounds["microworld_passages"] > 1.5, "few-shot prompts are shared"
    assert lines[-1].startswith("all of CORE ")
    assert min(bounds.values()) < float(lines[-1].split()[3]) < max(bounds.values())


def test_generation(script, capsys):
    sizes = ["--depth", 1, "--head-dim", 16, "--vocab-size", 128, "--sequence-length", 64, "--threads", 1]
    sizes += ["--prompt", 8, "--tokens", 4, "--rounds", 1]
    script("generation", *sizes, "--samples", 1, 2).main()
    lines = capsys.readouterr().out.splitlines()
    for method in ("ours", "plain cached loop", "stock generate"):
        assert len([line for line in lines if line.startswith(f"{method:20s}")]) == 2, method
    script("generation", *sizes, "--samples", 2, "--continuous").main()
    lines = capsys.readouterr().out.splitlines()
    assert [line[:20].strip() for line in lines[-3:]] == ["continuous", "without smear", "stock generate"]


def test_model_steps_and_losses(script, capsys):
    sizes = ["--depth", 1, "--head-dim", 32, "--sequence-length", 32, "--rows", 1, "--vocab-sizes", 128]
    sizes += ["--rounds", 1, "--threads", 1]
    script("model", *sizes, "--tables", "step", "loss", "--no-memory").main()
    rows = rows_of(capsys.readouterr().out)
    names = [row[0] for row in rows]
    assert "transformers' NanoChat" in names and "ours, modern" in names and "chunked, vocabulary 128" in names
    assert all(number(row[1]) > 0 and row[3] == "–" for row in rows if len(row) == 4 and row[1][:1].isdigit())


def test_the_row_of_mkl_alone_switches_onednn_off(script, monkeypatch):
    model = script("model", "--tables", "step", "--rounds", 1)
    asked = []
    monkeypatch.setattr(model.products_nanochat_hf, "onednn_is_better", lambda: asked.append(1) is None)
    sizes = {"depth": 1, "vocab_sizes": [128], "head_dim": 32, "sequence_length": 64, "rows": 1}
    options = SimpleNamespace(**sizes, device="cpu", compile=False, dtype="float32")
    model.step_of("ours, modern, products by MKL alone", options)()
    assert not asked
    monkeypatch.setattr(model.products_nanochat_hf, "LARGE", 1)
    monkeypatch.setattr(model.products_nanochat_hf, "LARGE_FOR_THREADS", 1)
    model.step_of("ours, modern", options)()
    assert asked


def test_model_memory_and_imports(script, monkeypatch, capsys):
    large = ["--depth", 1, "--sequence-length", 512, "--vocab-sizes", 8192, "--threads", 1]
    script("model", *large, "--memory-of", "loss", "all logits, vocabulary 8192").main()
    assert float(capsys.readouterr().out.split()[-1]) > 4 * 512 * 8192 * 4 / 1e6 / 2, "MB; all logits in fp32 are 67"
    module = script("model", "--tables", "import", "--rounds", 1, "--threads", 1)
    monkeypatch.setattr(module, "IMPORTS", {"import json": "import csv"})  # transformers takes seconds per process
    module.main()
    assert [row[0] for row in rows_of(capsys.readouterr().out)][2:] == ["`import json`", "`import csv`"]


def test_tokenizer(script, shards, capsys):
    sizes = ["--train_megabytes", 0.05, "--encode_megabytes", 0.05, "--vocab_size", 400, "--threads", 1]
    script("tokenizer", *sizes, "--rounds", 1, "--libraries", "rustbpe").main()
    rows = rows_of(capsys.readouterr().out)
    assert ["rustbpe", "absent"] in [row[:2] for row in rows] or importlib.util.find_spec("rustbpe")
    measured = [row for row in rows if row[0].startswith("nanochat_hf")]
    assert len(measured) == 3 and all(row[-1] == "yes" for row in measured)
    with pytest.raises(UserError, match="lower --train_megabytes"):
        script("tokenizer").read_texts(str(shards), 100.0)


def test_pretrain(script, capsys):
    """Two depths, each with both tables."""
    sizes = [*SHAPE[2:], "--depths", 1, 2, "--batch_size", 2, "--block", 1, "--pairs", 1, "--eager"]
    script("pretrain", *sizes).main()
    rows = rows_of(capsys.readouterr().out)
    titles = [row[0] for row in rows if row[0].endswith("64 tokens per step")]
    assert [title.rpartition(" d")[2][0] for title in titles] == ["1", "1", "2", "2"]
    speeds = [number(row[1]) for row in rows if row[0] in ("bare loop", "Trainer", "ours")]
    assert len(speeds) == 6 and all(speed > 0 for speed in speeds)


def test_pretrain_measures_both_ways_of_compiling(script, tmp_path, monkeypatch, capsys):
    """Ours and upstream's script, not compiled and compiled. No script is started; a stand-in says when steps end."""
    started = []

    class NoScript:
        def __init__(self, command, environment, folder, pattern):
            self.started = 0.0
            started.append((Path(command[1]).name, environment.get("TORCHDYNAMO_DISABLE"), command[-1]))
            self.speed = len(started)

        def run(self, steps):
            return [step / self.speed for step in range(steps)]

        def close(self):
            pass

    module = script("pretrain", "--depths", 6, "--pairs", 1, "--block", 1, "--tables", "scripts")
    options = module.parse_arguments()
    options.upstream = tmp_path
    monkeypatch.setattr(module, "Script", NoScript)
    monkeypatch.setattr(module, "prepare_upstream", lambda *_: {})
    tokenizer = type("Tokenizer", (), {"save_pretrained": lambda self, folder: None})()
    module.compare_scripts(options, tokenizer, 6)
    assert [one[1:] for one in started] == [(None, "false"), ("1", "-1"), (None, "true"), (None, "-1")]
    rows = {row[0]: row for row in rows_of(capsys.readouterr().out)}
    # The stand-in at place n makes n steps per second; each of ours is compared with the one of upstream's after it.
    assert rows["ours"][2].startswith("0.500") and rows["ours, compiled"][2].startswith("0.750")
    assert rows["upstream"][2].startswith("1.000") and rows["upstream, compiled"][2].startswith("1.000")


OUR_CHOICE = {"GOMP_SPINCOUNT": "5000", "NANOCHAT_HF_SPINCOUNT": "5000"}


def test_upstreams_script_waits_as_torch_does(script, tmp_path, monkeypatch):
    """Our spin count, which the benchmark's own process has, is not for scripts; ours chooses its own."""
    for name, value in OUR_CHOICE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KMP_BLOCKTIME", "9")
    code = "import json, os, sys; print(json.dumps({k: os.environ.get(k) for k in sys.argv[1:]}))"
    command = [sys.executable, "-c", code, *OUR_CHOICE, "KMP_BLOCKTIME", "PYTHONPATH"]
    expected = dict.fromkeys(OUR_CHOICE) | {"KMP_BLOCKTIME": "9", "PYTHONPATH": "x"}
    log = tmp_path / "a.log"
    quality = script("quality")
    quality.follow(command, log, {"PYTHONPATH": "x"}, tmp_path)
    assert json.loads(log.read_text()) == expected

    module = script("pretrain")
    started = module.Script(command, {"PYTHONPATH": "x"}, tmp_path, "odd")
    started.process.wait()
    for _ in range(500):
        if b"}" in started.log:
            break
        time.sleep(0.01)
    assert json.loads(started.log.decode()) == expected


def test_quality(script, shards, tmp_path, capsys):
    """Two seeds would be two runs of a training script; one shows that runs are made, kept and tabulated."""
    sizes = [*SHAPE[:-2], "--vocab_size", 400, "--batch_size", 2, "--tokens", 128, "--eval_tokens", 128]
    command = ["--data", shards, "--output_dir", tmp_path, "--arms", "ours", "--seeds", 1, *sizes]
    script("quality", *command).main()
    said = capsys.readouterr().out
    first = rows_of(said)[-1]
    assert first[0] == "ours" and 0 < number(first[1]) < 10
    assert "bits per byte of packed rows" in said and "bits per byte of whole documents" in said
    written = (tmp_path / "d1-ours-seed1" / "run.json").stat().st_mtime_ns
    script("quality", *command).main()
    assert rows_of(capsys.readouterr().out)[-1] == first
    assert (tmp_path / "d1-ours-seed1" / "run.json").stat().st_mtime_ns == written, "a finished run is kept"
    record = tmp_path / "options.json"
    for again in range(2):  # with the record, and as an older version left the folder, without it
        for name, old, new in QUALITY_CHANGES:
            with pytest.raises(UserError, match=f"was made with --{name} {old}, not {new}; give another --output_dir"):
                script("quality", *command, *([f"--{name}"] if new is True else [f"--{name}", new])).main()
        if not again:
            record.unlink()
    assert not record.exists(), "nothing is written where the command stops"
    script("quality", *command).main()
    assert rows_of(capsys.readouterr().out)[-1] == first and record.exists()
    assert (tmp_path / "d1-ours-seed1" / "run.json").stat().st_mtime_ns == written


QUALITY_CHANGES = [("tokens", 128, 512), ("sequence_length", 32, 16), ("batch_size", 2, 4), ("vocab_size", 400, 300)]
QUALITY_CHANGES += [("head_dim", 16, 32), ("eval_tokens", 128, 64), ("compile", False, True), ("rows_at_once", 1, 2)]


def test_quality_takes_more_seeds_arms_and_depths_into_a_folder(script, shards, tmp_path):
    command = ["--data", shards, "--output_dir", tmp_path]
    module = script("quality", *command)
    (tmp_path / "options.json").write_text(json.dumps(module.shared_options(module.parse_arguments())))
    (tmp_path / "d4-ours-seed1" / "checkpoint-20").mkdir(parents=True)
    for more in (["--seeds", 3, 4], ["--arms", "small"], ["--depth", 6], ["--tokens", 3_000_000]):
        module.check_record(script("quality", *command, *more).parse_arguments())
    with pytest.raises(UserError, match="--tokens 3000000, not 5; give another --output_dir"):
        module.check_record(script("quality", *command, "--tokens", 5).parse_arguments())
    (tmp_path / "d4-ours-seed1" / "checkpoint-20").rmdir()
    module.check_record(script("quality", *command, "--tokens", 5).parse_arguments())  # no run has begun


def test_quality_compares_a_folder_without_a_record_as_far_as_its_runs_say(script, shards, tmp_path):
    """Runs of other arms have batches of their own; a folder without any result is new."""
    (tmp_path / "d4-ours-seed1").mkdir()
    (tmp_path / "d4-half-the-batch-seed2").mkdir()
    command = ["--data", shards, "--output_dir", tmp_path]
    module = script("quality", *command)
    module.check_record(module.parse_arguments())
    config = {"sequence_length": 512, "total_batch_size": 4096, "num_iterations": 734, "packing": "best_fit"}
    (tmp_path / "d4-half-the-batch-seed2" / "run.json").write_text(json.dumps({"config": config}))
    module.check_record(module.parse_arguments())
    with pytest.raises(UserError, match="--sequence_length 512, not 256"):
        module.check_record(script("quality", *command, "--sequence_length", 256).parse_arguments())


def test_ngrams(script, shards, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER.parent / "tests" / "training"))
    from chat_toy import make_base

    model = make_base(tmp_path / "model", sequence_length=64)
    module = script("ngrams", "--model", model, "--data", shards, "--tokens", 20000, "--documents", 20)
    module.main()
    rows = {row[0]: row[1:] for row in rows_of(capsys.readouterr().out)[2:]}
    alone = [number(rows[f"table of {order}-grams"][0]) for order in (2, 3, 4)]
    assert alone[0] > alone[1] > 0, "two tokens before tell more than one"
    for order in (2, 3, 4):
        assert number(rows[f"table of {order}-grams"][1]) < number(rows["the model"][0]), "it was not trained"
    with pytest.raises(UserError, match="--orders end at"):
        script("ngrams", "--model", model, "--data", shards, "--orders", 9).main()


def test_ngram_tables_are_distributions(script):
    """Of any context, seen or not, the probabilities of all next tokens sum to one."""
    module, vocab = script("ngrams"), 5
    counted = np.random.default_rng(0).integers(0, vocab - 1, 60)  # the last token never occurs
    for context in [(0, 1), (3, 2), (4, 4), (1, 4)]:
        scored = np.concatenate([[*context, token] for token in range(vocab)])
        table = ((np.bincount(counted, minlength=vocab) + 1) / (len(counted) + vocab))[scored]
        for order in (2, 3):
            table = module.add_order(table, counted, scored, order, vocab)
            assert table[2::3].sum() == pytest.approx(1), (context, order)


def test_busy(script, capsys):
    """A real process beside a real neighbour."""
    small = ["--seconds", 0.01, "--rounds", 1, "--neighbours", 1, "--threads", 1]
    module = script("busy", *small, "--settings", "product", "--parts", "training", "chat")
    module.main()
    said = capsys.readouterr()
    rows = [row for row in rows_of(said.out) if row[0] == "product"]
    assert len(rows) == 3 and all(number(row[1]) > 0 and row[2] == "0%" for row in rows[:2]) and rows[2][1] == "0%"
    assert said.err.count("1 neighbours, product") == 1
    options = module.parse_arguments()
    assert module.all_settings(options)["product"].keys() == {"GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
    with pytest.raises(UserError, match="there is no setting 'odd'; choose from torch's, passive, spin 300"):
        script("busy", "--settings", "odd").parse_arguments()


@pytest.mark.parametrize(("threads", "spins"), [(1, "5000"), (4, "300")])
def test_the_products_setting_is_that_of_so_many_threads(script, tmp_path, monkeypatch, threads, spins):
    """A machine of four cores, on which two programs are running."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    (tmp_path / "loadavg").write_text("2.00 2.00 2.00 3/800 12345\n")
    monkeypatch.setattr(openmp, "LOAD", tmp_path / "loadavg")
    module = script("busy", "--threads", threads)
    assert module.all_settings(module.parse_arguments())["product"] == {"GOMP_SPINCOUNT": spins, "KMP_BLOCKTIME": "1"}


def test_busy_says_the_loss_on_a_free_machine_and_the_share_kept_on_a_busy_one(script, capsys):
    module = script("busy", "--neighbours", 1, 0, "--parts", "training", "chat", "--threads", 2)
    options = module.parse_arguments()
    assert options.settings == ["torch's", "passive", "spin 300", "spin 5000"]
    free = {"torch's": (100, 10), "passive": (70, 9), "spin 300": (90, 8), "spin 5000": (95, 10)}
    beside = {"torch's": (5, 1), "passive": (60, 8), "spin 300": (55, 6), "spin 5000": (50, 7)}
    found = {
        count: {name: {"training": [pair[0]], "chat": [pair[1]]} for name, pair in speeds.items()}
        for count, speeds in ((1, beside), (0, free))
    }
    module.print_tables(options, found)
    rows = rows_of(capsys.readouterr().out)
    assert rows[0] == ["training, tokens per second, 2 threads", "free machine", "loss", "1 neighbours", "kept"]
    assert rows[3] == ["passive", "70", "30%", "60", "60%"]
    assert rows[-6] == ["worst of training, chat", "loss, free machine", "kept beside 1"]
    assert rows[-4:] == [
        ["torch's", "0%", "5%"],
        ["passive", "30%", "60%"],
        ["spin 300 (product, busy machine)", "20%", "55%"],
        ["spin 5000 (product, free machine)", "5%", "50%"],
    ]


@pytest.mark.parametrize(("seconds", "calls"), [(1.5, 1), (2.5, 3), (5.0, 4)])
def test_busy_measures_a_single_call_where_it_takes_all_the_time(script, monkeypatch, seconds, calls):
    """Each call takes two seconds of this clock; the first is a warm-up unless it takes longer than all the time."""
    module, clock = script("busy"), [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def work():
        clock[0] += 2
        return 10

    assert module.speed(work, seconds) == 5 and clock[0] == 2 * calls


def test_serving(script, capsys):
    """Ours with several clients, one at a time, and plain `transformers serve`: no answer is lost or mixed up."""
    sizes = ["--depth", 1, "--head_dim", 32, "--vocab_size", 512, "--sequence_length", 256, "--tokens", 4]
    script("serving", *sizes, "--clients", 3, "--requests", 2).main()
    head, _, *rows = rows_of(capsys.readouterr().out)
    assert [row[0] for row in rows] == ["ours", "ours, one at a time", "transformers serve"]
    for row in rows:
        values = dict(zip(head, row, strict=True))
        assert (values["lost"], values["differ"]) == ("0", "0") and number(values["tokens/s"]) > 0
    with pytest.raises(UserError, match="--clients must be at least 1"):
        script("serving", "--clients", 0).parse_arguments()


def test_quickstart(script, tmp_path, monkeypatch, capsys):
    """The pipeline itself is replaced here: it writes what a run writes, with other scores for other seeds."""
    recipe, runs, seeds = tmp_path / "recipe.yaml", tmp_path / "runs", []
    recipe.write_text("common: {seed: 1, report_to: [none]}\nrl: {num_iterations: 2}\n")

    def pipeline(command, **_):
        assert Path(command[1]).name == "speedrun.py" and Path(command[1]).exists()
        folder = Path(command[command.index("--run_dir") + 1])
        own = yaml.safe_load(Path(command[command.index("--config") + 1]).read_text())
        assert own["rl"] == {"num_iterations": 2} and own["common"]["report_to"] == ["none"]
        seeds.append(own["common"]["seed"])
        for stage in ("base", "mid", "sft", "rl")[: seeds[-1]]:
            (folder / stage / "eval").mkdir(parents=True)
            (folder / stage / "run.json").write_text('{"seconds": 1200}')
            rows = [{"task": "exam", "accuracy": seeds[-1] / 10}]
            found = {"evaluation": "chat", "metrics": {"chatcore": 0.5}, "details": {"tasks": rows}, "seconds": 9}
            (folder / stage / "eval" / "chat.json").write_text(json.dumps(found))
        return SimpleNamespace(returncode=seeds[-1] == 5)

    module = script("quickstart", "--recipe", recipe, "--output_dir", runs, "--seeds", 3, 4)
    monkeypatch.setattr(module.subprocess, "run", pipeline)
    module.main()
    assert seeds == [3, 4]
    rows = {row[0]: row[1:] for row in rows_of(capsys.readouterr().out)}
    assert rows["exam"] == ["35.0 [30.0, 40.0]"] * 3 + ["–"]
    assert rows["ChatCORE"] == ["50.0 [50.0, 50.0]"] * 3 + ["–"]
    assert rows["3"] == ["1,200", "1,200", "1,200", "–", "27", "–"]
    assert rows["4"] == ["1,200"] * 4 + ["36", "4,836"]
    script("quickstart", "--output_dir", runs, "--seeds", 4, "--tables_only").main()
    assert "| exam | 40.0 [40.0, 40.0] |" in capsys.readouterr().out
    with pytest.raises(UserError, match="there is no run in .*seed-5; leave out --tables_only, or the seed 5"):
        script("quickstart", "--output_dir", runs, "--seeds", 5, "--tables_only").main()
    with pytest.raises(UserError, match="the run with seed 5 has failed"):
        script("quickstart", "--recipe", recipe, "--output_dir", runs, "--seeds", 5).main()


def test_rollouts(script, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER.parent / "tests" / "training"))
    from chat_toy import make_base

    model = make_base(tmp_path / "model", sequence_length=256)
    sizes = ["--prompts", 2, "--answers", 2, "--max_new_tokens", 8, "--rounds", 1, "--threads", 1]
    sizes += ["--device_batch_size", 2, "--row_length", 64, "--tasks", "microworld-problems@6"]
    module = script("rollouts", "--model", model, *sizes, "--sft_tasks", "microworld-chat@40")
    module.main()
    shown = capsys.readouterr().out
    rows = {row[0]: row[1:] for row in rows_of(shown)}
    for name in ("ours", "GRPOTrainer", "GRPOTrainer, tools=", "GRPOTrainer, environment_factory=", "SFTTrainer"):
        assert all(number(cell.rstrip(" ×")) > 0 for cell in rows[name] if cell != "–"), name
    assert rows["whole step"][1] == "100%" and {"sampling", "rewards, loss and update"} <= set(rows)
    losses = [float(rows[name][-1]) for name in ("ours", "SFTTrainer")]
    assert losses[0] == pytest.approx(losses[1], rel=0.02), "the same rows and nearly the same steps"
    assert shown.count("answers have a tool's tokens") == 3
    with pytest.raises(UserError, match="no checkpoint folder.*--model"):
        script("rollouts", "--model", tmp_path / "nothing").main()


def test_masks_are_written_beside_the_tokens(script, tmp_path):
    from nanochat_hf.tokenizer import train

    words = train(["It is 36. 12*3"] * 9, 268)
    ids = words.encode("12*3<|output_start|>36<|output_end|>.", add_special_tokens=False)
    mask = [0 if words.decode([token])[:2] in ("<|", "36") else 1 for token in ids]
    text = script("rollouts", "--model", tmp_path).describe_masks(words, [[5], ids], [[1], mask])
    assert (
        text.startswith("1 of 2 answers have a tool's tokens") and "'<|output_start|>':0" in text and "'.':1" in text
    )
