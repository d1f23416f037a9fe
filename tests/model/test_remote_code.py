"""A saved folder runs with nothing but torch, transformers and safetensors around it."""

import ast
import subprocess
import sys
from importlib import metadata

import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from safetensors.torch import load_file, save_file

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
    names_of_parts = ("configuration", "loss", "modeling", "shape", "smear_state", "window_attention")
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
