"""Progress of long work where the output is no terminal: lines, and none for short work."""

import sys

from tqdm import tqdm

from nanochat_hf import progress


class Terminal:
    """Stands for a terminal."""

    encoding = "utf-8"

    def __init__(self):
        self.written = ""

    def write(self, text):
        self.written += text

    def flush(self):
        pass

    def isatty(self):
        return True


def test_short_work_prints_nothing_into_a_file(capsys):
    for _ in progress.progress_bar(range(5), desc="packing", unit=" rows"):
        pass
    with progress.progress_bar(total=3, desc="scoring", unit=" items", leave=False) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_long_work_prints_whole_lines_into_a_file(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_PER_LINE", 0.0)  # every update counts as late enough
    with progress.progress_bar(total=4, desc="training", unit=" steps") as bar:
        for step in range(4):
            bar.set_postfix({"loss": f"{step}.5"}, refresh=False)
            bar.update(1)
            tqdm.write(f"step {step}")
    with progress.progress_bar(desc="reading", unit="B", unit_scale=True) as bar:
        bar.update(2000)
    printed = capsys.readouterr()
    assert "\r" not in printed.err and "\n\n" not in printed.err
    assert "training: 50%, 2/4 steps" in printed.err and "loss=1.5" in printed.err
    assert "reading: 2.00kB" in printed.err
    assert printed.out.splitlines() == [f"step {step}" for step in range(4)]


def test_a_terminal_has_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for _ in progress.progress_bar(range(2), desc="packing"):
        pass
    assert "\r" in terminal.written and "100%|" in terminal.written


def test_transformers_bars_are_off_and_downloads_keep_theirs_on_a_terminal(monkeypatch):
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    hub_before, transformers_before = are_progress_bars_disabled(), logging.is_progress_bar_enabled()
    try:
        for terminal in (True, False):
            enable_progress_bars()
            logging.enable_progress_bar()
            monkeypatch.setattr(sys, "stderr", Terminal())
            monkeypatch.setattr(Terminal, "isatty", lambda self, terminal=terminal: terminal)
            progress.quiet_transformers()
            assert not logging.is_progress_bar_enabled()
            assert are_progress_bars_disabled() is not terminal
    finally:
        (logging.enable_progress_bar if transformers_before else logging.disable_progress_bar)()
        (disable_progress_bars if hub_before else enable_progress_bars)()
