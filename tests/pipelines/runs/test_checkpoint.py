"""Covers pipelines.cache.encoder_recipe, pipelines.runs.folder, pipelines.runs.model, pipelines.runs.spec."""

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, PeftModel

from encoders.clip_encoder import load_clip_encoder
from llm.loading import load_llm
from llm.settings import LoraSettings
from llm.tiny import write_tiny_llm
from pipelines import storage
from pipelines.cache.encoder_recipe import recipe_of
from pipelines.errors import UserError
from pipelines.runs.checkpoint import Snapshot, load_optimizer, load_run, model_card, save_checkpoint
from pipelines.runs.folder import complete_steps
from pipelines.runs.model import build_model
from pipelines.runs.spec import RunSpec
from qformer.config import AlignerConfig

IDS = torch.arange(3, 23).unsqueeze(0)
SIZES = {"speech_width": 128, "audio_width": 96, "llm_width": 128, "hidden_width": 32, "num_heads": 2, "ffn_width": 64}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with the tiny LLM in it and one checkpoint of weights that are all drawn."""
    run = tmp_path_factory.mktemp("run")
    write_tiny_llm(["some words"], run / "llm")
    recipe = recipe_of(load_clip_encoder(whisper="tiny", beats="tiny"), codec="int8", precision="float32")
    encoders = {"speech": "/models/whisper-large-v2", "audio": "/models/beats.pt"}
    aligner, lora = AlignerConfig(**SIZES), LoraSettings(rank=4)
    spec = RunSpec(
        recipe=recipe,
        encoders=encoders,
        llm="tiny",
        dtype="float32",
        frames=250,
        examples_digest="ab12",
        aligner=aligner,
        lora=lora,
    )
    model = build_model(spec, str(run), device="cpu")
    for parameter in model.trainable_parameters().values():
        torch.nn.init.normal_(parameter, std=0.1)
    optimizer = torch.optim.AdamW(model.trainable_parameters().values())
    save_checkpoint(str(run), 200, Snapshot.of(model, optimizer), spec, {"seed": 0}, keep=1)
    spec.write(str(run))
    return run


def copied(run: Path, uri: str, *, without: str) -> str:
    """Copy a run's files to a filesystem that is not of this machine, and return its URI there."""
    for path in run.rglob("*"):
        target = storage.join(uri, path.relative_to(run).as_posix())
        if path.is_dir():
            filesystem, folder = storage.resolve(target)
            filesystem.create_dir(folder)  # object stores need no folders, this one does
        elif path.name != without:
            storage.write_bytes(target, path.read_bytes())
    return uri


def test_run_far_away_is_loaded_without_its_optimizer_and_leaves_nothing_here(run, tmp_path, monkeypatch):
    uri = copied(run, "mock://runs/a", without="optimizer.pt")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    there, here = load_run(uri), load_run(str(run))
    assert list((tmp_path / "tmp").iterdir()) == []
    assert there.step == here.step == 200 and there.spec == here.spec
    weights = here.model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in there.model.state_dict().items())


def test_adapter_folder_loads_with_peft_itself(run):
    ours = load_run(str(run)).model.llm(IDS).logits
    base = load_llm(run / "llm")[0]
    bare = base(IDS).logits
    theirs = PeftModel.from_pretrained(base, run / "checkpoints" / "000200" / "adapter").eval()(IDS).logits
    assert torch.equal(ours, theirs) and not torch.equal(theirs, bare)


def test_pefts_own_loading_of_base_and_adapter_says_which_base_it_needs(run, tmp_path):
    """It reads the base by its name, and asks nobody for `None`."""
    adapter = tmp_path / "adapter"
    shutil.copytree(run / "checkpoints" / "000200" / "adapter", adapter)
    with pytest.raises(OSError, match=r"tiny \(in the folder llm of the adapter's run\)"):
        AutoPeftModelForCausalLM.from_pretrained(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(run / "llm")}))
    assert torch.equal(
        AutoPeftModelForCausalLM.from_pretrained(adapter)(IDS).logits, load_run(str(run)).model.llm(IDS).logits
    )


def test_model_card_is_one_of_the_hub_and_tells_where_the_weights_belong(run):
    spec = RunSpec.read(str(run))
    card = ModelCard.load(run / "checkpoints" / "000200" / "README.md")
    assert card.data.to_dict() == {
        "library_name": "peft",
        "pipeline_tag": "audio-text-to-text",
        "tags": ["salmonn", "lora"],
    }
    rows = dict(line[2:-2].split(" | ") for line in card.text.splitlines() if line.startswith("| ") and line[2] != "|")
    digests = {name: stream.digest for name, stream in spec.recipe.streams.items()}
    assert rows.pop("speech encoder") == f"whisper-large-v2, 128 channels, weights `{digests['speech']}`"
    assert rows.pop("audio encoder") == f"beats.pt, 96 channels, weights `{digests['audio']}`"
    assert rows == {
        "language model": "tiny, float32",
        "features": f"int8, computed in float32, recipe `{spec.recipe.digest}`",
        "heard": "the first 250 frames of 20 ms",
        "windows": "0.333333 s, a new one every 0.333333 s, 1 token of each",
        "Q-Former": "2 layers, 32 channels, 2 heads",
        "LoRA": "rank 4, alpha 32, on q_proj, v_proj",
        "steps": "200",
        "examples": "`ab12`",
    }


def test_model_card_links_an_llm_of_the_hub_but_no_folder(run):
    spec = RunSpec.read(str(run))
    cards = [ModelCard(model_card(replace(spec, llm=llm), 1)) for llm in ("lmsys/vicuna-13b-v1.1", "/models/vicuna")]
    assert [card.data.base_model for card in cards] == ["lmsys/vicuna-13b-v1.1", None]
    assert all("/models" not in card.content for card in cards)


FILES = ["aligner.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_with_one_bit_changed_is_named(run, tmp_path, name):
    copied(run, str(tmp_path), without="")
    path = tmp_path / "checkpoints" / "000200" / name
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"000200: the checkpoint is damaged \({name} is not what was written\)"):
        load_run(str(tmp_path))
    path.unlink()
    with pytest.raises(UserError, match=rf"000200: the checkpoint is damaged \({name} is gone\)"):
        load_run(str(tmp_path))


def test_a_changed_optimizer_is_named_to_whoever_continues_and_to_nobody_else(run, tmp_path):
    copied(run, str(tmp_path), without="")
    path = tmp_path / "checkpoints" / "000200" / "optimizer.pt"
    path.write_bytes(path.read_bytes() + b"x")
    model = load_run(str(tmp_path)).model
    optimizer = torch.optim.AdamW(model.trainable_parameters().values())
    with pytest.raises(UserError, match=r"damaged \(optimizer\.pt is not what was written\)"):
        load_optimizer(str(tmp_path), 200, optimizer)


@pytest.mark.parametrize("name", FILES[:2])
def test_a_checkpoint_from_before_there_were_digests_is_loaded_and_its_damage_found(run, tmp_path, name):
    copied(run, str(tmp_path), without="")
    state = tmp_path / "checkpoints" / "000200" / "state.json"
    content = json.loads(state.read_text())
    assert set(content.pop("sha256")) == {*FILES, "README.md", "optimizer.pt"}
    state.write_text(json.dumps(content))
    load_run(str(tmp_path))
    path = tmp_path / "checkpoints" / "000200" / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"checkpoints/000200: the checkpoint is damaged"):
        load_run(str(tmp_path))


@pytest.mark.parametrize("content", ["[]", '{"sha256": 3}', '{"sha256": []}'])
def test_a_state_that_is_none_is_named(run, tmp_path, content):
    copied(run, str(tmp_path), without="")
    (tmp_path / "checkpoints" / "000200" / "state.json").write_text(content)
    with pytest.raises(UserError, match=r"000200/state\.json: damaged, not a checkpoint's state"):
        load_run(str(tmp_path))


def test_run_without_a_complete_checkpoint_cannot_answer(run, tmp_path):
    copied(run, str(tmp_path), without="state.json")
    assert complete_steps(str(tmp_path)) == []
    with pytest.raises(ValueError, match="has no complete checkpoint yet"):
        load_run(str(tmp_path))
