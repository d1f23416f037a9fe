"""The wheel of `make wheel`, installed beside nothing but the dependencies of a plain install, loads and chats.

No test here sees the repository: they run in an environment of their own, in a folder outside, and nanochat_hf comes
from the wheel.
"""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import torch
from distributions import OWN_NAME, PYPROJECT, ROOT, needed, required
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from started_server import free_port
from transformers import AutoModelForCausalLM, AutoTokenizer

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
from nanochat_hf.tokenizer import render_prompt, train

pytestmark = pytest.mark.timeout(1800)  # where the Rust code is not compiled yet

ANSWER = """
import importlib.util, json, sys
import nanochat_hf
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = (one.from_pretrained(sys.argv[1]) for one in (AutoModelForCausalLM, AutoTokenizer))
ids = tokenizer.apply_chat_template(
    [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_tensors="pt", return_dict=False
)
answer = model.generate(ids, max_new_tokens=12, do_sample=False)
others = ("accelerate", "datasets", "trl", "pyarrow", "matplotlib", "fastapi", "gradio", "pytest")
print(json.dumps({
    "file": nanochat_hf.__file__,
    "class": type(model).__module__,
    "answer": answer[0].tolist(),
    "installed": [name for name in others if importlib.util.find_spec(name)],
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    # `-o setup`: the environment of this test is set up already.
    command = ["make", "-o", "setup", "wheel", f"BIN={Path(sys.executable).parent}", f"DIST={folder}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A virtual environment that holds the wheel and links to what a plain install needs."""
    return make_environment(wheel, tmp_path_factory.mktemp("environment"))


@pytest.fixture(scope="module")
def training_environment(wheel, tmp_path_factory) -> Path:
    """The same with the extra `train`."""
    return make_environment(wheel, tmp_path_factory.mktemp("environment"), "train")


def make_environment(wheel: Path, path: Path, *extras: str) -> Path:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True)
    [packages] = path.glob("lib/python*/site-packages")
    dependencies = needed(required(*extras))
    absent = [name for name, distribution in dependencies.items() if distribution is None]
    assert not absent, f"not installed: {absent}"
    for distribution in dependencies.values():
        for name in {file.parts[0] for file in distribution.files if file.parts[0] not in ("..", "__pycache__")}:
            link = packages / name
            if not link.exists():  # several of nvidia's share a folder
                link.symlink_to(distribution.locate_file(name))
    install = [sys.executable, "-m", "pip", "--python", path / "bin" / "python", "install", "--quiet"]
    subprocess.run([*install, "--no-deps", "--no-index", "--disable-pip-version-check", wheel], check=True)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny random model and its tokenizer."""
    path = tmp_path_factory.mktemp("checkpoint")
    tokenizer = train(["hi there, this is some text to learn a few merges from"] * 2, 320 - 32)
    config = NanochatHFConfig(
        vocab_size=320,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        sliding_window=64,
    )
    torch.manual_seed(0)
    model = NanochatHFForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():  # answers of small letters only, whose ids are their bytes
        model.lm_head.weight[: ord("a")].zero_()
        model.lm_head.weight[ord("z") + 1 :].zero_()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def greedy_answer(checkpoint) -> tuple[list[int], str]:
    """Returns what this process's package answers to "hi": the ids of the whole conversation, and the answer."""
    model, tokenizer = (one.from_pretrained(checkpoint) for one in (AutoModelForCausalLM, AutoTokenizer))
    ids = render_prompt(tokenizer, [{"role": "user", "content": "hi"}])
    whole = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0].tolist()
    answer = tokenizer.decode(whole[len(ids) :])
    assert re.fullmatch("[a-z]{12}", answer), answer
    return whole, answer


def run_outside(environment, tmp_path, *command) -> subprocess.CompletedProcess:
    """Runs a program of the environment in an empty folder, without any of this process's variables."""
    variables = {"PATH": os.defpath, "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [environment / "bin" / command[0], *command[1:]]
    result = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return result


def test_it_holds_the_package_and_no_tests(wheel):
    assert re.fullmatch(r"nanochat_hf-[\d.]+-cp311-abi3-\w+\.whl", wheel.name), wheel.name
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    package = ROOT / "nanochat_hf"
    sources = {
        str(path.relative_to(ROOT))
        for path in package.rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".so") and "__pycache__" not in path.parts
    }
    assert "nanochat_hf/tokenizer/chat_template.jinja" in sources
    inside = {name for name in names if not re.match(r"nanochat_hf-[\d.]+\.dist-info/", name)}
    assert inside == sources | {"nanochat_hf/_rustbpe.abi3.so"}
    assert not [name for name in inside if re.search(r"(^|/)(tests?/|test_|conftest)", name)]


def test_its_metadata_is_that_of_pyproject(wheel):
    with zipfile.ZipFile(wheel) as archive:
        [folder] = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = Parser().parsestr(archive.read(f"{folder}/METADATA").decode())
        scripts = archive.read(f"{folder}/entry_points.txt").decode()
    project = PYPROJECT["project"]
    extras = {canonicalize_name(extra) for extra in project["optional-dependencies"]}
    assert set(metadata.get_all("Provides-Extra")) == extras
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    plain = {canonicalize_name(one.name) for one in requirements if one.marker is None}
    assert plain == {canonicalize_name(one.name) for one in required()}
    for extra in extras:
        named = {
            canonicalize_name(one.name)
            for one in requirements
            if one.marker is not None and one.marker.evaluate({"extra": extra})
        }
        assert named == {canonicalize_name(Requirement(one).name) for one in project["optional-dependencies"][extra]}
    assert metadata["Name"] == OWN_NAME and metadata["Requires-Python"] == project["requires-python"]
    assert f"nanochat-hf={project['scripts']['nanochat-hf']}" in scripts.replace(" ", "")


def test_a_plain_install_loads_a_checkpoint_and_generates(environment, checkpoint, tmp_path):
    result = json.loads(run_outside(environment, tmp_path, "python", "-c", ANSWER, checkpoint).stdout)
    assert Path(result["file"]).is_relative_to(environment)
    assert result["class"] == "nanochat_hf.model.modeling_nanochat_hf"
    assert result["installed"] == []
    assert result["answer"] == greedy_answer(checkpoint)[0]


def test_a_plain_install_chats(environment, checkpoint, tmp_path):
    options = ["--prompt", "hi", "--temperature", "0", "--max-new-tokens", "12"]
    answer = run_outside(environment, tmp_path, "nanochat-hf", "chat", checkpoint, *options).stdout
    assert answer == greedy_answer(checkpoint)[1] + "\n"


def test_the_source_distribution_installs_and_chats(wheel, checkpoint, tmp_path):
    """pip makes a wheel of it with the Rust toolchain. It has the files of `make wheel`'s."""
    maturin = [sys.executable, "-m", "maturin", "sdist", "--out", tmp_path / "sdist"]
    subprocess.run(maturin, cwd=ROOT, check=True, capture_output=True)
    [source] = (tmp_path / "sdist").glob("*.tar.gz")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", source]
    variables = dict(os.environ)
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"  # where maturin is
    variables["CARGO_TARGET_DIR"] = str(ROOT / "rustbpe" / "target")  # the crates it needs are compiled there
    subprocess.run([*build, "-w", tmp_path / "wheel"], cwd=tmp_path, env=variables, check=True)
    [built] = (tmp_path / "wheel").glob("*.whl")
    assert sorted(zipfile.ZipFile(built).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())
    environment = make_environment(built, tmp_path / "environment")
    options = ["--prompt", "hi", "--temperature", "0", "--max-new-tokens", "12"]
    answer = run_outside(environment, tmp_path, "nanochat-hf", "chat", checkpoint, *options).stdout
    assert answer == greedy_answer(checkpoint)[1] + "\n"


def test_a_plain_install_says_what_serving_needs(environment, checkpoint, tmp_path):
    with pytest.raises(AssertionError, match=r"pip install 'nanochat-hf\[serve\]'"):
        run_outside(environment, tmp_path, "nanochat-hf", "serve", checkpoint)


def test_an_install_with_its_extra_serves(wheel, checkpoint, tmp_path):
    environment = make_environment(wheel, tmp_path / "environment", "serve")
    port = free_port()
    address, variables = f"http://127.0.0.1:{port}", {"PATH": os.defpath, "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [environment / "bin" / "nanochat-hf", "serve", checkpoint, "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1"], cwd=tmp_path, env=variables, stdout=log, stderr=log
        )
    try:
        while not answers(f"{address}/health"):
            assert server.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.25)
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 12, "temperature": 0}
        request = urllib.request.Request(f"{address}/v1/chat/completions", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as response:
            assert json.load(response)["choices"][0]["message"]["content"] == greedy_answer(checkpoint)[1]
    finally:
        server.terminate()
        server.wait(60)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except OSError:
        return False


RECIPE = """
common:
  data: [microworld]
  sequence_length: 64
tokenizer:
  vocab_size: 300
  max_chars: 100_000
pretrain:
  depth: 1
  aspect_ratio: 32
  head_dim: 32
  num_iterations: 3
  total_batch_size: 256
  device_batch_size: 4
  eval_every: never
evaluation:
  data: microworld
  evaluations: [bits_per_byte]
  max_documents: 4
speedrun:
  run_dir: run
  stages: [tokenizer, pretrain]
  first_words: ["Who are you?"]
"""


def test_an_install_with_the_extra_trains_without_a_clone(training_environment, tmp_path):
    """`nanochat-hf train` starts the stages, the evaluation, the report and a first chat, each as a process."""
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    said = run_outside(training_environment, tmp_path, "nanochat-hf", "train", "tiny.yaml").stdout
    run = tmp_path / "run"
    for stage, folder in (("tokenizer", "tokenizer"), ("pretrain", "base")):
        record = json.loads((run / folder / "run.json").read_text())
        assert record["stage"] == stage and record["environment"]["git_commit"] is None
    assert 0 < json.loads((run / "base/eval/bits_per_byte.json").read_text())["metrics"]["bits_per_byte"]
    assert "base" in (run / "report.md").read_text()
    assert "You: Who are you?" in said and f"{training_environment}/bin/nanochat-hf chat run/base" in said
    listed = run_outside(training_environment, tmp_path, "nanochat-hf", "recipes").stdout
    assert "  quickstart " in listed and "  accelerate_config " in listed


def test_a_plain_install_says_what_training_needs(environment, tmp_path):
    with pytest.raises(AssertionError, match=r"pip install 'nanochat-hf\[train\]'"):
        run_outside(environment, tmp_path, "nanochat-hf", "train", "smoke")


def test_a_plain_install_trains_a_tokenizer(environment, tmp_path):
    """The Rust extension of the wheel works."""
    program = "from nanochat_hf.tokenizer import train; print(len(train(['abcabcabd'] * 9, 268)))"
    assert run_outside(environment, tmp_path, "python", "-c", program).stdout.strip() == "268"
