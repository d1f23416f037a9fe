"""The stage tokenizer: which text it learns from, and what it never overwrites."""

import subprocess
import sys

import pytest

from nanochat_hf import settings
from nanochat_hf.settings import UserError, folder_lock
from nanochat_hf.stages import tokenizer as stage
from nanochat_hf.stages.tokenizer import clip


def test_all_of_a_long_document_is_seen_where_text_is_little():
    documents = ["a" * 25 + "b" * 7, "c" * 4]
    assert list(clip(lambda: documents, 10, 1000)) == ["a" * 10, "c" * 4, "a" * 10, "a" * 5 + "b" * 5, "bb"]


def test_beginnings_come_first_and_end_as_upstreams_do():
    documents = ["a" * 25, "b" * 25, "c" * 25]
    assert list(clip(lambda: documents, 10, 25)) == ["a" * 10, "b" * 10, "c" * 10]
    assert list(clip(lambda: documents, 10, 35)) == ["a" * 10, "b" * 10, "c" * 10, "a" * 10]
    opened = []

    def open_again():
        opened.append(1)
        yield from ["a" * 10, "b"]

    assert list(clip(open_again, 10, 1000)) == ["a" * 10, "b"] and len(opened) == 1, "nothing is read twice in vain"


def test_a_cap_that_takes_nothing_is_refused():
    with pytest.raises(UserError, match="--doc_cap is a number of characters above 0"):
        list(clip(lambda: ["a"], 0, 10))


@pytest.fixture
def text(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"Line {i} of a short text about {7 * i}.\n" for i in range(400)))
    return tmp_path / "a.txt"


def train(text, folder):
    stage.main(["--data", str(text), "--output_dir", str(folder), "--vocab_size", "300", "--num_threads", "1"])


def test_a_finished_tokenizer_is_never_overwritten(text, tmp_path):
    train(text, tmp_path / "tokenizer")
    files = {path.name: path.read_bytes() for path in (tmp_path / "tokenizer").iterdir()}
    assert "run.json" in files and stage.UNFINISHED not in files
    with pytest.raises(UserError, match="tokenizer is finished; delete that folder to train it again"):
        train(text, tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "run.json").unlink()  # as one from the Hub, on which models may depend
    with pytest.raises(
        UserError, match="holds a tokenizer already, which another tokenizer would spoil; give another"
    ):
        train(text, tmp_path / "tokenizer")
    del files["run.json"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "tokenizer").iterdir()} == files


def test_bad_files_are_skipped_where_that_is_asked_for(text, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    text.rename(data / "a.txt")
    (data / "b.txt").write_bytes(b"caf\xe9")
    (data / "c.txt").write_text("held out")
    words = ["--data", str(data), "--output_dir", str(tmp_path / "tokenizer"), "--vocab_size", "300"]
    with pytest.raises(UserError, match="b.txt is not UTF-8"):
        stage.main(words)
    settings.run_main(lambda: stage.main([*words, "--on_bad_file", "skip"]))
    said = [line for line in capsys.readouterr().err.splitlines() if "b.txt" in line]
    assert len(said) == 1 and said[0].startswith("warning: skipped the rest of a file: "), "one line, said once"
    assert (tmp_path / "tokenizer" / "run.json").exists()


HOLD = """
import sys, time
from nanochat_hf.settings import folder_lock
folder_lock.claim(sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""


def test_two_commands_do_not_make_one_tokenizer(text, tmp_path, monkeypatch):
    folder = tmp_path / "tokenizer"
    with subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        try:
            with pytest.raises(UserError, match=f"another command is writing to {folder}; wait until it ends"):
                train(text, folder)
        finally:
            other.kill()
    assert [path.name for path in folder.iterdir()] == [".lock"]
    with monkeypatch.context() as patch, pytest.raises(UserError, match="tokenizer is finished"):
        patch.setattr(folder_lock, "claim", lambda folder: settings.save_run(folder, "tokenizer", {}))
        train(text, folder)  # the other one finished while this one read the text
    (folder / "run.json").unlink()
    train(text, folder)
    assert settings.load_run(folder)["fingerprint"][0]["files"] == 1


def test_a_models_folder_is_no_place_for_another_tokenizer(text, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="base holds a model already"):
        train(text, tmp_path / "base")


def test_an_interrupted_tokenizer_is_made_again(text, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(settings, "save_run", interrupt)
        train(text, tmp_path / "tokenizer")
    assert (tmp_path / "tokenizer" / "tokenizer.json").exists()
    train(text, tmp_path / "tokenizer")
    assert settings.load_run(tmp_path / "tokenizer")["stage"] == "tokenizer"
