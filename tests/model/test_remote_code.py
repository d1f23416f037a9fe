"""A saved folder runs with nothing but torch, transformers and safetensors around it."""

import ast
import subprocess
import sys
from importlib import metadata

import pytest
import torch
from hub_stand_in import hub
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from safetensors.torch import load_file, save_file
from tiny_models import randomized, tiny_config
from transformers import AutoModelForCausalLM

from nanochat_hf.tokenizer import train

CLEAN = """
import sys, sysconfig
from importlib.machinery import PathFinder

allowed = set(sys.argv[2].split()) | set(sys.stdlib_module_names)
allowed |= {"transformers_modules", sysconfig._get_sysconfigdata_name()}


class Only:
    find_distributions = PathFinder.find_distributions

    @staticmethod
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, path, target) if name.split(".")[0] in allowed else None


sys.meta_path = [finder for finder in sys.meta_path if finder is not PathFinder] + [Only]
"""
RUN = """
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification
from transformers import AutoModelForTokenClassification

folder = sys.argv[1]
try:
    import nanochat_hf
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the package must not be importable here")
tokens = load_file(f"{folder}/../tokens.safetensors")["tokens"]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules"), type(model)
assert type(AutoConfig.from_pretrained(folder, trust_remote_code=True)).__name__ == "NanochatHFConfig"
with torch.no_grad():
    seen = {"logits": model(tokens).logits}
    seen["generated"] = model.generate(tokens[:, :30], max_new_tokens=20, do_sample=False)
    seen["states"] = AutoModel.from_pretrained(folder, trust_remote_code=True)(tokens).last_hidden_state
for auto in (AutoModelForQuestionAnswering, AutoModelForSequenceClassification, AutoModelForTokenClassification):
    head = auto.from_pretrained(folder, trust_remote_code=True, revision="main")
    assert type(head).__module__.startswith("transformers_modules") and head(tokens[:1, :9])[0].isfinite().all()
batching = ContinuousBatchingConfig(num_blocks=40, page_size=8, max_batch_tokens=24)
settings = GenerationConfig(max_new_tokens=20, eos_token_id=-1, pad_token_id=0)
prompts = tokens[:, :30].tolist()
answers = model.generate_batch(prompts, generation_config=settings, continuous_batching_config=batching)
assert not any(answer.error for answer in answers.values())
seen["batched"] = torch.tensor([answer.generated_tokens for answer in answers.values()])
model.save_pretrained(f"{folder}/../again")
save_file(seen, f"{folder}/../seen.safetensors")
installed = {getattr(module, "__name__", "").split(".")[0] for module in list(sys.modules.values())}
assert not installed & {"nanochat_hf", "trl", "accelerate", "datasets", "peft", "torchao"}, installed
"""


@pytest.fixture(autouse=True)
def one_thread():
    """The other processes have one thread, and sums over several threads round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def modules_of(*distributions):
    """What the distributions and all that they require bring to import."""
    wanted, todo = set(), list(distributions)
    while todo:
        name = canonicalize_name(todo.pop())
        if name in wanted:
            continue
        wanted.add(name)
        for requirement in map(Requirement, metadata.requires(name) or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name)
    owners = metadata.packages_distributions().items()
    return {module for module, names in owners if wanted & set(map(canonicalize_name, names))}


def test_a_fresh_environment_runs_it(model, tokens, tmp_path):
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    save_file({"tokens": tokens}, tmp_path / "tokens.safetensors")
    environment = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    allowed = modules_of("torch", "transformers", "safetensors")
    assert "numpy" in allowed and not allowed & {"nanochat_hf", "trl", "accelerate", "datasets"}
    command = [sys.executable, "-I", "-c", CLEAN + RUN, str(folder), " ".join(allowed)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    seen = load_file(tmp_path / "seen.safetensors")
    with torch.no_grad():
        assert torch.equal(seen["logits"], model(tokens).logits)
        assert torch.equal(seen["states"], model.model(tokens).last_hidden_state)
    generated = model.generate(tokens[:, :30], max_new_tokens=20, do_sample=False)
    assert torch.equal(seen["generated"], generated)
    assert torch.equal(seen["batched"], generated[:, 30:])
    files = sorted(path.name for path in folder.iterdir())
    assert files == sorted(path.name for path in (tmp_path / "again").iterdir())  # a copy can be published again


def test_the_folder_holds_no_pickle_and_its_code_imports_two_packages(model, tmp_path):
    model.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    names_of_parts = "configuration loss modeling pointwise products shape smear_state window_attention".split()
    parts = {f"{part}_nanochat_hf" for part in names_of_parts}
    code = {f"{part}.py" for part in parts}
    assert names == code | {"config.json", "generation_config.json", "model.safetensors"}
    imported = set()
    for name in code:
        for node in ast.walk(ast.parse((tmp_path / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add("." * node.level + node.module.split(".")[0])
    others = imported - sys.stdlib_module_names
    assert others == {"torch", "transformers", "huggingface_hub"} | {
        f".{part}" for part in parts - {"modeling_nanochat_hf"}
    }


WHERE = """
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, first, second = sys.argv[1], *sys.argv[3:]
tokens, seen = load_file(f"{folder}/tokens.safetensors")["tokens"], {}
for place in ("me/tiny", f"{folder}/local"):
    for name, where in {
        "first": {"revision": first},
        "second": {"revision": second},
        "newest": {},
        "older subfolder": {"subfolder": "rl", "revision": first},
        "newest subfolder": {"subfolder": "rl"},
    }.items():
        if place != "me/tiny" and "revision" in where:  # a folder has no revisions
            continue
        model = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True, **where)
        assert type(model).__module__.startswith("transformers_modules"), type(model)
        with torch.no_grad():
            seen[f"{place[:2]} {name}"] = model(tokens).logits
tokenizer = AutoTokenizer.from_pretrained("me/tiny", subfolder="rl", revision=first, trust_remote_code=True)
assert tokenizer.decode(tokenizer("Hello!")["input_ids"]) == "Hello!"
try:
    AutoModelForCausalLM.from_pretrained("me/bare", subfolder="rl", trust_remote_code=True)
except OSError as error:
    assert "configuration_nanochat_hf.py" in str(error), error
else:
    raise SystemExit("transformers has found the code in the subfolder: say so in the documentation")
save_file(seen, f"{folder}/seen.safetensors")
"""


@pytest.fixture(scope="module")
def chat_tokenizer():
    return train(["Hello! Who are you? "] * 20, 275)


def test_subfolders_and_revisions_on_the_hub_and_in_a_folder(tokens, chat_tokenizer, tmp_path):
    """The code comes from the root of the repository, at the same revision as the weights."""
    models = {name: randomized(tiny_config(), seed) for seed, name in enumerate(("old", "new", "old rl", "new rl"))}
    files = {}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        chat_tokenizer.save_pretrained(tmp_path / name)
        files[name] = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
    commits = []
    for age, number in (("old", "1" * 40), ("new", "2" * 40)):
        inside = {f"rl/{name}": content for name, content in files[f"{age} rl"].items() if name[-3:] != ".py"}
        commits.append((number, {**files[age], **inside}))
    for name, content in commits[-1][1].items():
        (tmp_path / "local" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "local" / name).write_bytes(content)
    save_file({"tokens": tokens}, tmp_path / "tokens.safetensors")
    allowed = modules_of("torch", "transformers", "safetensors")
    arguments = [str(tmp_path), " ".join(allowed), *(number for number, _ in commits)]
    with hub() as server:
        server.repos["models", "me/tiny"] = commits
        server.repos["models", "me/bare"] = [("3" * 40, {f"rl/{name}": one for name, one in files["new rl"].items()})]
        environment = {"HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": server.address, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-I", "-c", CLEAN + WHERE, *arguments]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    seen = load_file(tmp_path / "seen.safetensors")
    expected = {"first": "old", "second": "new", "newest": "new"}
    expected |= {"older subfolder": "old rl", "newest subfolder": "new rl"}
    with torch.no_grad():
        logits = {name: model(tokens).logits for name, model in models.items()}
    assert {name[3:] for name in seen} == set(expected) and len(seen) == 7
    for name, found in seen.items():
        assert torch.equal(found, logits[expected[name[3:]]]), name


def test_a_subfolder_with_the_package_needs_no_code_in_the_root(model, tokens, tmp_path):
    model.save_pretrained(tmp_path / "rl")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, subfolder="rl")
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


TOKENIZER = """
import io
from contextlib import redirect_stdout
from transformers import AutoTokenizer, PreTrainedTokenizerFast

folder, shown = sys.argv[1], io.StringIO()
with redirect_stdout(shown):
    silent = [AutoTokenizer.from_pretrained(folder, trust_remote_code=answer) for answer in (False, True)]
    silent.append(PreTrainedTokenizerFast.from_pretrained(folder))
assert not shown.getvalue()
with redirect_stdout(shown):
    asked = AutoTokenizer.from_pretrained(folder)  # nobody answers
assert "Do you wish to run the custom code?" in shown.getvalue()
for tokenizer in (*silent, asked):
    assert tokenizer.decode(tokenizer("Hello!")["input_ids"]) == "Hello!" and tokenizer.chat_template
"""


def test_the_tokenizer_loads_without_custom_code(model, chat_tokenizer, tmp_path):
    """transformers asks about the model's code, because it reads the model's configuration first."""
    model.save_pretrained(tmp_path / "model")
    chat_tokenizer.save_pretrained(tmp_path / "model")
    environment = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    allowed = " ".join(modules_of("torch", "transformers", "safetensors"))
    command = [sys.executable, "-I", "-c", CLEAN + TOKENIZER, str(tmp_path / "model"), allowed]
    options = dict(env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240)
    result = subprocess.run(command, **options)
    assert result.returncode == 0, result.stderr
