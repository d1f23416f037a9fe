"""`nanochat-hf convert` on real folders: upstream's own weights and logits are in the goldens."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import tiktoken
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, NanoChatForCausalLM

from nanochat_hf import NanochatHFConfig, NanochatHFForCausalLM
from nanochat_hf.cli import main as cli
from nanochat_hf.conversion import convert_folder
from nanochat_hf.settings import UserError
from nanochat_hf.tokenizer import train

GOLDENS = Path(__file__).parents[1] / "goldens"
TEXT = ["the quick brown fox jumps over the lazy dog, and 12 more; größe 日本 😀\n" * 3, Path(__file__).read_text()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Upstream checkpoint folders of both eras, a tokenizer in the folder beside."""
    base = tmp_path_factory.mktemp("upstream")
    made = {}
    for era in ("modern", "classic"):
        path = GOLDENS / f"model_{era}_1.safetensors"
        with safe_open(path, "pt") as file:
            config = json.loads(file.metadata()["config"])
        golden = load_file(path)
        weights = {f"_orig_mod.{n.removeprefix('weights.')}": t for n, t in golden.items() if n.startswith("weights.")}
        folder = base / era / "base_checkpoints" / "d4"
        write_upstream(folder, weights, config, step=200)
        write_upstream(folder, {name: tensor + 1 for name, tensor in weights.items()}, config, step=100)
        train(TEXT, config["vocab_size"]).save_pretrained(base / era / "tokenizer")
        made[era] = folder, golden, config
    return made


def write_upstream(folder, weights, config, step):
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights, folder / f"model_{step:06d}.pt")
    (folder / f"meta_{step:06d}.json").write_text(json.dumps({"step": step, "model_config": config}))


def assert_same(left: dict, right: dict):
    assert set(left) == set(right)
    for name in left:
        assert left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]), name


@pytest.mark.parametrize(("era", "atol"), [("modern", 1e-4), ("classic", 5e-3)])
def test_upstreams_folder_becomes_ours_with_upstreams_logits(era, atol, folders, tmp_path, capsys):
    folder, golden, config = folders[era]
    cli.main(["convert", str(folder), str(tmp_path / "ours")])
    assert era in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert type(model) is NanochatHFForCausalLM and len(tokenizer) == config["vocab_size"]
    assert (
        tokenizer("größe 日本 <|bos|>")["input_ids"]
        == train(TEXT, config["vocab_size"])("größe 日本 <|bos|>")["input_ids"]
    )
    ends = tokenizer.convert_tokens_to_ids(["<|assistant_end|>", "<|python_end|>"])
    assert model.generation_config.eos_token_id == ends
    with torch.no_grad():
        logits = model(golden["input_ids"].long()).logits
    torch.testing.assert_close(logits, golden["logits"], atol=atol, rtol=0)


@pytest.mark.parametrize("era", ["modern", "classic"])
def test_upstream_to_ours_and_back_is_bit_exact(era, folders, tmp_path):
    folder, _, config = folders[era]
    original = torch.load(folder / "model_000200.pt", weights_only=True)
    original = {name.removeprefix("_orig_mod."): tensor for name, tensor in original.items()}
    for name in original:  # as upstream keeps its tables; rows past the vocabulary are never used
        if "wte" in name or "value_embeds" in name:
            original[name] = original[name].bfloat16()
        if "wte" in name or "value_embeds" in name or "lm_head" in name:
            original[name][config["vocab_size"] :] = 0
    write_upstream(tmp_path / "upstream", original, config, step=7)
    tokenizer = folder.parents[1] / "tokenizer"
    convert_folder(tmp_path / "upstream", tmp_path / "ours", tokenizer=tokenizer)
    convert_folder(tmp_path / "ours", tmp_path / "again", to="upstream", step=7)
    assert_same(torch.load(tmp_path / "again" / "model_000007.pt", weights_only=True), original)
    meta = json.loads((tmp_path / "again" / "meta_000007.json").read_text())
    assert meta["model_config"] == {**config, **({"window_pattern": "SSSLSL"} if era == "modern" else {})}


def test_the_step_is_chosen(folders, tmp_path):
    folder, _, _ = folders["classic"]
    for step, name in ((None, "last"), (100, "first")):
        convert_folder(folder, tmp_path / name, step=step)
    last, first = (load_file(tmp_path / name / "model.safetensors") for name in ("last", "first"))
    assert torch.equal(last["lm_head.weight"] + 1, first["lm_head.weight"])
    with pytest.raises(UserError, match="no step 150; it has 100, 200"):
        convert_folder(folder, tmp_path / "none", step=150)


def test_classic_to_transformers_and_back_is_bit_exact(folders, tmp_path):
    folder, golden, _ = folders["classic"]
    convert_folder(folder, tmp_path / "ours")
    convert_folder(tmp_path / "ours", tmp_path / "theirs", to="transformers")
    convert_folder(tmp_path / "theirs", tmp_path / "again")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    assert type(theirs) is NanoChatForCausalLM
    assert not list((tmp_path / "theirs").glob("*.py"))  # nothing remote to trust
    assert len(AutoTokenizer.from_pretrained(tmp_path / "theirs")) == 320
    with torch.no_grad():
        logits = theirs(golden["input_ids"].long()).logits.float()
    torch.testing.assert_close(logits, golden["logits"], atol=5e-3, rtol=0)
    assert_same(*(load_file(tmp_path / name / "model.safetensors") for name in ("again", "ours")))
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("again", "ours")]
    assert configs[0] == configs[1]


def test_upstreams_tokenizer_files_are_made(folders, tmp_path):
    folder, _, config = folders["modern"]
    convert_folder(folder, tmp_path / "ours")
    convert_folder(tmp_path / "ours", tmp_path / "upstream", to="upstream")
    encoding = pickle.loads((tmp_path / "upstream" / "tokenizer.pkl").read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert encoding.n_vocab == config["vocab_size"]
    assert encoding.encode_ordinary(TEXT[1]) == tokenizer(TEXT[1], split_special_tokens=True)["input_ids"]
    assert encoding.encode("<|bos|>", allowed_special="all") == [tokenizer.bos_token_id]
    lengths = torch.load(tmp_path / "upstream" / "token_bytes.pt", weights_only=True)
    assert lengths[encoding.encode_ordinary(TEXT[0])].sum() == len(TEXT[0].encode())


def test_onnx_says_what_the_model_says(tmp_path):
    """Any batch and any length, past the sliding windows too."""
    import onnxruntime

    config = NanochatHFConfig.from_depth(
        2, vocab_size=320, sequence_length=64, head_dim=16, aspect_ratio=16, sliding_window=9, window_pattern="S"
    )
    model = NanochatHFForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(tmp_path / "ours")
    train(TEXT, 300).save_pretrained(tmp_path / "ours")
    convert_folder(tmp_path / "ours", tmp_path / "onnx", to="onnx")
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    for shape in ((1, 1), (3, 100)):
        ids = torch.randint(0, 320, shape)
        (logits,) = session.run(["logits"], {"input_ids": ids.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), model(ids).logits, atol=1e-4, rtol=0)
    assert (tmp_path / "onnx" / "tokenizer.json").exists()


def test_upstreams_pickled_tokenizer_is_read_without_running_it(folders, tmp_path):
    folder, _, config = folders["modern"]
    convert_folder(folder, tmp_path / "ours")
    convert_folder(tmp_path / "ours", tmp_path / "upstream", to="upstream")
    convert_folder(tmp_path / "upstream", tmp_path / "again")  # finds tokenizer.pkl beside the weights
    ours, again = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("ours", "again"))
    assert again.get_vocab() == ours.get_vocab()
    context = AutoModelForCausalLM.from_pretrained(tmp_path / "again").config.max_position_embeddings
    assert again.model_max_length == context == config["sequence_len"]  # upstream's tokenizer file does not say it
    assert again(TEXT[1])["input_ids"] == ours(TEXT[1])["input_ids"]


PICKLES = {
    "code": (pickle.dumps({"x": len}), "needs builtins.len"),
    "no encoding": (pickle.dumps({"x": 1}), "not upstream's tokenizer"),
    "truncated": (pickle.dumps(list(range(999)))[:500], "not upstream's tokenizer"),
    "other control tokens": (
        pickle.dumps(tiktoken.Encoding("x", pat_str=".", mergeable_ranks={b"a": 0}, special_tokens={"<|end|>": 1})),
        "its control tokens are not nanochat's",
    ),
}


@pytest.mark.parametrize("name", PICKLES)
def test_other_pickles_are_refused(name, folders, tmp_path):
    content, complaint = PICKLES[name]
    (tmp_path / "tokenizer.pkl").write_bytes(content)
    refused(folders["modern"][0], tmp_path / "out", complaint, tokenizer=tmp_path)


# --- what is wrong is named, and nothing is left behind


class Trap:
    def __reduce__(self):
        return print, ("code ran",)


def spoil_upstream(change):
    def spoil(folder):
        path = folder / "model_000200.pt"
        weights = torch.load(path, weights_only=True)
        change(weights)
        torch.save(weights, path)

    return spoil


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


QUERY = "_orig_mod.transformer.h.2.attn.c_q.weight"
UPSTREAM_FAULTS = {
    "missing tensor": (spoil_upstream(lambda w: w.pop(QUERY)), "lacks transformer.h.2.attn.c_q.weight"),
    "misshaped tensor": (
        spoil_upstream(lambda w: w.update({QUERY: w[QUERY][:7]})),
        r"transformer.h.2.attn.c_q.weight has shape \[7, 64\], .*asks for \[64, 64\]",
    ),
    "unknown tensor": (spoil_upstream(lambda w: w.update(surprise=w[QUERY])), "does not: surprise"),
    "truncated file": (lambda folder: cut(folder / "model_000200.pt", 0.7), "model_000200.pt is damaged"),
    "pickled code": (spoil_upstream(lambda w: w.update(x=Trap())), "more than tensors and is not opened"),
    "no meta file": (lambda folder: (folder / "meta_000200.json").unlink(), "meta_000200.json is missing"),
    "broken meta": (lambda folder: cut(folder / "meta_000200.json", 0.5), "meta_000200.json is not valid JSON"),
    "no config": (lambda folder: (folder / "meta_000200.json").write_text("{}"), "has no model_config"),
    "half a config": (
        lambda folder: (folder / "meta_000200.json").write_text('{"model_config": {"n_layer": 4}}'),
        "configuration lacks sequence_len, vocab_size",
    ),
    "no heads": (lambda folder: change(folder / "meta_000200.json", n_head=0), "ZeroDivisionError"),
    "heads in words": (lambda folder: change(folder / "meta_000200.json", n_head="two"), "d4: .*expected int"),
    "pattern is 5": (lambda folder: change(folder / "meta_000200.json", window_pattern=5), "d4: AttributeError"),
}


@pytest.mark.parametrize("fault", UPSTREAM_FAULTS)
def test_faults_of_upstreams_folder_are_named(fault, folders, tmp_path, capsys):
    spoil, complaint = UPSTREAM_FAULTS[fault]
    folder, _, _ = folders["classic"]
    shutil.copytree(folder.parents[1], tmp_path / "base")
    spoil(tmp_path / "base" / "base_checkpoints" / "d4")
    refused(tmp_path / "base" / "base_checkpoints" / "d4", tmp_path / "out" / "ours", complaint)
    assert "code ran" not in capsys.readouterr().out


def refused(source, destination, complaint, **options):
    before = sorted(destination.parent.glob("*")) if destination.parent.exists() else []
    with pytest.raises(UserError, match=complaint) as error:
        convert_folder(source, destination, **options)
    assert "\n" not in str(error.value)
    assert sorted(destination.parent.glob("*")) == before


@pytest.fixture(scope="module")
def ours(folders, tmp_path_factory):
    made = tmp_path_factory.mktemp("ours")
    for era, (folder, _, _) in folders.items():
        convert_folder(folder, made / era)
    return made


def without_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def change(file, **values):
    content = json.loads(file.read_text())
    content.get("model_config", content).update(values)
    file.write_text(json.dumps(content))


OUR_FAULTS = {
    "width in words": (
        lambda folder: change(folder / "config.json", hidden_size="wide"),
        "'hidden_size': .*expected int",
    ),
    "layers below zero": (lambda folder: change(folder / "config.json", num_hidden_layers=-1), "num_hidden_layers"),
    "empty tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        "tokenizer in .*broken cannot be loaded .KeyError: 'added_tokens'.; make it again",
    ),
    "cut tokenizer": (lambda folder: cut(folder / "tokenizer.json", 0.5), "tokenizer in .*broken cannot be loaded"),
    "sampling that is no JSON": (
        lambda folder: (folder / "generation_config.json").write_text("{"),
        "generation_config.json.*not a valid JSON",
    ),
    "index of a list": (
        lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": []}'),
        "index.json has no weight_map from tensors to files",
    ),
    "missing tensor": (without_tensor, "lacks model.layers.1.mlp.up_proj.weight"),
    "truncated file": (
        lambda folder: cut(folder / "model.safetensors", 0.99),
        r"model.safetensors is damaged: it ends before model\.\S+ does \(\d of \d+ tensors",
    ),
    "hardly begun": (lambda folder: cut(folder / "model.safetensors", 0.001), "model.safetensors is damaged"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "another model": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'),
        "a 'llama' model",
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), "neither an upstream .* nor a config.json"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "--tokenizer"),
}


@pytest.mark.parametrize("fault", OUR_FAULTS)
def test_faults_of_our_folder_are_named(fault, ours, tmp_path):
    spoil, complaint = OUR_FAULTS[fault]
    shutil.copytree(ours / "classic", tmp_path / "broken")
    spoil(tmp_path / "broken")
    refused(tmp_path / "broken", tmp_path / "out" / "x", complaint, to="transformers")


def test_what_a_form_cannot_say_is_refused(ours, folders, tmp_path):
    refused(ours / "modern", tmp_path / "x", "no value_embeddings.*only classic", to="transformers")
    refused(ours / "modern", tmp_path / "x", "320 tokens and the model only 300", tokenizer=ours / "classic")
    refused(ours / "modern", tmp_path / "x", "trust_remote_code=True", to="transformers")
    refused(ours / "modern", tmp_path / "x", "the formats are", to="pdf")
    refused(ours / "modern", tmp_path / "x", "llama.cpp runs a fixed list.*take --to onnx", to="gguf")
    refused(ours / "modern", tmp_path / "x", "cannot convert to MLX.*--device mps", to="MLX")
    refused(ours, tmp_path / "x", "neither")
    refused(ours / "classic", tmp_path / "x", "leave --step out here", step=3)
    refused(folders["modern"][0].parent, tmp_path / "x", "name one of the folders in it: d4")
    refused(tmp_path / "nowhere", tmp_path / "x", "not a folder .*hf download")


def test_nothing_is_written_over(ours, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "precious").write_text("kept")
    refused(ours / "classic", tmp_path / "made", "exists already")
    assert (tmp_path / "made" / "precious").read_text() == "kept"
    (tmp_path / "empty").mkdir()
    convert_folder(ours / "classic", tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").exists()


def test_an_empty_folder_may_be_the_current_one_or_a_link(ours, tmp_path, monkeypatch):
    names = {path.name for path in (ours / "classic").iterdir() if path.suffix == ".safetensors"}
    for folder in ("here", "linked"):
        (tmp_path / folder).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "linked")
    monkeypatch.chdir(tmp_path / "here")
    convert_folder(ours / "classic", ".")
    convert_folder(ours / "classic", tmp_path / "link")
    for folder in ("here", "linked"):
        found = {path.name for path in (tmp_path / folder).iterdir()}
        assert found >= names | {"config.json", "tokenizer.json"} and not any(name[0] == "." for name in found)
    assert (tmp_path / "link").is_symlink()


def test_a_path_may_begin_with_the_home_folder(ours, tmp_path, monkeypatch):
    """As in `--tokenizer=~/run`, where the shell leaves the ~ to the program."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(ours / "classic", tmp_path / "model")
    convert_folder("~/model", "~/new", tokenizer="~/model")
    assert (tmp_path / "new" / "model.safetensors").exists()


def test_a_failed_conversion_leaves_an_empty_folder_empty(ours, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(ours / "modern", tmp_path / "empty", "no value_embeddings", to="transformers")
    assert not list((tmp_path / "empty").iterdir())
