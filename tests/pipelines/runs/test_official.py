"""Covers pipelines.runs.config."""

import json
from pathlib import Path

import pytest
import torch
from pyarrow import fs
from safetensors.torch import load_file

from encoders.clip_encoder import load_clip_encoder
from encoders.features import Heard
from llm.loading import load_llm
from llm.lora import adapter_state_dict, adapter_to_official, add_lora
from llm.prompts import AFTER_AUDIO, BEFORE_AUDIO
from llm.salmonn import Batch, Salmonn
from llm.settings import LoraSettings
from llm.tiny import write_tiny_llm
from pipelines import storage
from pipelines.batches.batch import make_batch
from pipelines.cli import main
from pipelines.runs.checkpoint import load_run
from pipelines.runs.config import ExportConfig, ImportConfig
from pipelines.runs.official import export_official, import_official
from pipelines.runs.spec import RunSpec
from pipelines.training.config import TrainConfig
from pipelines.training.preflight import open_run
from pipelines.training.worker.loop import TrainWorker
from qformer.aligner import Aligner
from qformer.config import AlignerConfig, QFormerConfig
from qformer.official import to_official
from tests import SHARED
from tests.pipelines.builders import fill, make_worker, prepare_tones

GOLDEN = SHARED / "golden"
SIZES = {"hidden_width": 32, "num_heads": 2, "ffn_width": 64, "num_layers": 3, "num_queries": 2}
LORA = "llama_model.base_model.model.model.layers.0.self_attn.{}.weight"
EXTRAS = {
    "speech_Qformer.bert.embeddings.position_ids": torch.arange(512).unsqueeze(0),
    "llama_model.base_model.model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
    "beats.encoder.layers.1.self_attn.relative_attention_bias.weight": torch.ones(320, 4),
}


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("llm")
    write_tiny_llm(["What can be heard?", BEFORE_AUDIO, AFTER_AUDIO], folder)
    return str(folder)


@pytest.fixture(scope="module")
def source(llm) -> Salmonn:
    """A model for the tiny encoders whose every weight is drawn."""
    torch.manual_seed(0)
    model, tokenizer = load_llm(llm)
    aligner = Aligner(AlignerConfig(speech_width=128, audio_width=96, llm_width=128, **SIZES))
    salmonn = Salmonn(aligner, add_lora(model, LoraSettings(rank=4)), tokenizer)
    for parameter in salmonn.trainable_parameters().values():
        torch.nn.init.normal_(parameter, std=0.1)
    return salmonn.eval()


@pytest.fixture(scope="module")
def tensors(source) -> dict:
    state = to_official(source.aligner) | adapter_to_official(adapter_state_dict(source.llm))
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def written(path, tensors, **beside) -> str:
    torch.save({"model": tensors, **beside}, path)
    return str(path)


def words_of(ckpt, llm, out) -> list[str]:
    keys = {"ckpt": ckpt, "llm": llm, "out": out, "whisper": "tiny", "beats": "tiny", "num_heads": 2}
    return ["import-official", *(f"{key}={value}" for key, value in keys.items())]


def exported(run, out) -> dict:
    export_official(ExportConfig(run=str(run), out=str(out)))
    return torch.load(out, weights_only=True)["model"]


def same_bytes(ours: dict, theirs: dict) -> bool:
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype
        and ours[name].shape == theirs[name].shape
        and ours[name].view(torch.uint8).equal(theirs[name].view(torch.uint8))
        for name in theirs
    )


def test_import_and_export_give_back_every_byte(tmp_path, tensors, llm):
    beside = {"optimizer": {"state": {}, "param_groups": []}, "config": {"model": {}}, "scaler": None, "epoch": 3}
    ckpt = written(tmp_path / "a.pth", tensors | EXTRAS, **beside)
    assert main(words_of(ckpt, llm, tmp_path / "run")) == 0
    assert main(["export-official", f"run={tmp_path}/run", f"out={tmp_path}/b.pth"]) == 0
    assert same_bytes(torch.load(tmp_path / "b.pth", weights_only=True)["model"], tensors)


@pytest.mark.parametrize(
    ("said", "keys", "expected"),
    [
        ({"lora_alpha": 12, "second_per_window": 0.5, "second_stride": 0.25}, [], (12, 0.5, 0.25)),
        ({"lora_alpha": 12}, ["lora_alpha=12", "stride_seconds=0.2"], (12, 0.333333, 0.2)),
        ({}, ["lora_alpha=16"], (16, 0.333333, 0.333333)),
        (None, [], (32, 0.333333, 0.333333)),
    ],
)
def test_what_tensors_do_not_tell_the_config_in_the_checkpoint_does(tmp_path, tensors, llm, said, keys, expected):
    ckpt = written(tmp_path / "a.pth", tensors, **({} if said is None else {"config": {"model": said, "run": {}}}))
    assert main([*words_of(ckpt, llm, tmp_path / "run"), *keys]) == 0
    spec = RunSpec.read(str(tmp_path / "run"))
    assert (spec.lora.alpha, spec.aligner.window_seconds, spec.aligner.stride_seconds) == expected


@pytest.mark.parametrize(
    ("said", "keys", "message"),
    [
        ({"lora_alpha": 12}, ["lora_alpha=32"], "lora_alpha=32: the config in ckpt={} says lora_alpha 12; leave"),
        (
            {"second_stride": 0.25},
            ["stride_seconds=0.5"],
            "stride_seconds=0.5: the config in ckpt={} says second_stride",
        ),
        ({"lora_alpha": "x"}, [], "ckpt={}: its config says lora_alpha 'x', which is no lora_alpha"),
        ({"lora_alpha": 1.5}, [], "ckpt={}: its config says lora_alpha 1.5, which is no lora_alpha"),
    ],
)
def test_a_key_that_contradicts_the_checkpoint_is_refused(tmp_path, tensors, llm, capsys, said, keys, message):
    ckpt = written(tmp_path / "a.pth", tensors, config={"model": said})
    assert main([*words_of(ckpt, llm, tmp_path / "run"), *keys]) == 2
    assert message.format(ckpt) in capsys.readouterr().err


def test_checkpoint_that_hears_speech_alone_comes_back_too(tmp_path, tensors, llm):
    aligner = Aligner(AlignerConfig(speech_width=128, audio_width=None, llm_width=128, **SIZES))
    alone = {name: tensor for name, tensor in tensors.items() if "lora" in name} | to_official(aligner)
    assert main([*words_of(written(tmp_path / "a.pth", alone), llm, tmp_path / "run"), "beats=none"]) == 0
    assert same_bytes(exported(tmp_path / "run", tmp_path / "b.pth"), alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_stay_so_until_they_train(tmp_path, tensors, llm, dtype):
    halves = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    assert main(words_of(written(tmp_path / "a.pth", halves), llm, tmp_path / "run")) == 0
    assert same_bytes(exported(tmp_path / "run", tmp_path / "b.pth"), halves)
    parameters = load_run(str(tmp_path / "run")).model.trainable_parameters()
    assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}


def test_older_names_of_lora_are_read_and_the_newer_written(tmp_path, tensors, llm):
    older = {name.replace(".default.", "."): tensor for name, tensor in tensors.items()}
    assert older.keys() != tensors.keys()
    assert main(words_of(written(tmp_path / "a.pth", older), llm, tmp_path / "run")) == 0
    assert same_bytes(exported(tmp_path / "run", tmp_path / "b.pth"), tensors)


def test_imported_run_is_the_model_that_was_exported(tmp_path, tensors, source, llm):
    assert main(words_of(written(tmp_path / "a.pth", tensors), llm, tmp_path / "run")) == 0
    run = load_run(str(tmp_path / "run"))
    assert run.step == 0 and run.spec.frames == 1500 and run.spec.encoders == {"speech": "tiny", "audio": "tiny"}
    torch.manual_seed(1)
    batch = Batch(torch.randn(1, 1500, 128), torch.randn(1, 400, 96), None, ["What can be heard?"], ["a dog"])
    assert torch.equal(run.model.loss(batch).total, source.loss(batch).total)


def test_imported_run_answers_evaluates_and_is_trained_on(tmp_path, tensors, source, llm, capsys):
    manifest, cache, run = prepare_tones(tmp_path, num_clips=4), tmp_path / "c", tmp_path / "run"
    fill(cache, manifest, make_worker(cache))
    assert main(words_of(written(tmp_path / "a.pth", tensors), llm, run)) == 0
    short = ["num_beams=1", "max_new_tokens=2"]
    assert main(["evaluate", f"run={run}", f"manifest={manifest}", f"cache={cache}", *short]) == 0
    assert main(["ask", f"run={run}", f"audio={tmp_path}/audio/tone-0.wav", "question=What?", *short]) == 0
    config = TrainConfig(
        manifest=manifest,
        cache=str(cache),
        run=str(tmp_path / "next"),
        llm=llm,
        init_from=str(run),
        steps=1,
        batch_examples=2,
        qformer=QFormerConfig(**SIZES),
        lora=LoraSettings(rank=4),
    )
    open_run(config, pending=[])
    worker = TrainWorker(config, 0, 1, torch.device("cpu"))
    theirs = source.trainable_parameters()
    assert all(torch.equal(ours, theirs[name]) for name, ours in worker.parameters.items())
    worker.run()
    trained = exported(config.run, tmp_path / "b.pth")
    assert trained.keys() == tensors.keys() and not same_bytes(trained, tensors)
    assert (
        main(["train", *(f"{key}={getattr(config, key)}" for key in ("manifest", "cache", "llm")), f"run={run}"]) == 2
    )
    assert "holds a run with another config" in capsys.readouterr().err


def without(name):
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def changed(name, tensor):
    return lambda tensors: tensors | {name: tensor}


@pytest.mark.parametrize(
    ("change", "keys", "message"),
    [
        (without("ln_audio.weight"), [], "ln_audio.weight is missing"),
        (without("speech_query_tokens"), [], "speech_query_tokens is missing"),
        (without(LORA.format("v_proj.lora_B.default")), [], "layers.0.self_attn.v_proj.lora_B.weight is missing"),
        (changed("speech_llama_proj.scale", torch.ones(1)), [], "speech_llama_proj.scale is left over"),
        (changed(LORA.format("k_proj"), torch.ones(1)), [], "k_proj.weight is left over"),
        (changed("beats.encoder.layers.0.fc1.weight", torch.ones(1)), [], "beats.encoder.layers.0.fc1.weight is left"),
        (changed("speech_encoder.conv1.weight", torch.ones(1)), [], "speech_encoder.conv1.weight is left over"),
        (changed("ln_speech.bias", torch.ones(5)), [], "ln_speech.bias is [5] there and [128] here"),
        (changed("speech_query_tokens", torch.ones(32)), [], "speech_query_tokens is of shape [32], expected 3 axes"),
        (changed("ln_speech.weight", torch.ones(128).long()), [], "model.ln_speech.weight holds no weights"),
        (changed("epoch", 3), [], "model.epoch holds no weights"),
        (lambda tensors: {k: v for k, v in tensors.items() if "lora" not in k}, [], "holds no LoRA weights"),
        (changed("speech_llama_proj.weight", torch.ones(64, 32)), [], "width 64, not 128"),
        (
            changed("ln_speech.weight", torch.ones(64)),
            [],
            "made for another model than whisper=tiny: width 64, not 128",
        ),
        (dict, ["beats=none"], "made for another model than beats=none: width 96, not none"),
        (dict, ["num_heads=5"], "hidden_width 32 is not a multiple of num_heads 5"),
        (dict, ["window_seconds=40"], "window_seconds 40"),
        (dict, ["lora_alpha=-1"], "lora_alpha=-1: must be 0 or more"),
        (dict, ["llm=absent"], "absent: no language model here"),
        (dict, ["whisper=absent"], "absent: no such folder"),
        (dict, ["ckpt=absent.pth"], "absent.pth: no such file"),
        (dict, ["ckpt=."], "Is a directory"),
    ],
)
def test_what_does_not_fit_gives_one_line_and_exit_code_2(tmp_path, tensors, llm, change, keys, message, capsys):
    ckpt = written(tmp_path / "a.pth", change(tensors))
    assert main([*words_of(ckpt, llm, tmp_path / "run"), *keys]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
    assert not (tmp_path / "run").exists()


class Foreign:
    """What a checkpoint could run code with, were it unpickled."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a checkpoint", "not a file of torch.save"),
        (b"", "not a file of torch.save"),
        ({"weights": {}}, "not an official checkpoint"),
        ({"model": [1]}, "not an official checkpoint"),
        ([1], "not an official checkpoint"),
        ({"model": {}}, "speech_query_tokens is missing"),
        (
            {"model": {"speech_query_tokens": Foreign()}},
            "holds a tests.pipelines.runs.test_official.Foreign, which is not",
        ),
    ],
)
def test_what_is_no_checkpoint_gives_one_line_and_exit_code_2(tmp_path, llm, content, message, capsys):
    if isinstance(content, bytes):
        (tmp_path / "a.pth").write_bytes(content)
    else:
        torch.save(content, tmp_path / "a.pth")
    assert main(words_of(tmp_path / "a.pth", llm, tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{tmp_path}/a.pth: " in error and message in error


def test_a_checkpoint_that_was_cut_short_is_refused(tmp_path, tensors, llm, capsys):
    ckpt = Path(written(tmp_path / "a.pth", tensors))
    ckpt.write_bytes(ckpt.read_bytes()[:-1000])
    assert main(words_of(ckpt, llm, tmp_path / "run")) == 2
    assert "not a file of torch.save" in capsys.readouterr().err


def test_nothing_that_is_there_is_overwritten(tmp_path, tensors, llm, capsys):
    ckpt, run = written(tmp_path / "a.pth", tensors), tmp_path / "run"
    assert main(words_of(ckpt, llm, run)) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(words_of(ckpt, llm, run)) == 2
    assert f"out={run}: holds a run already" in capsys.readouterr().err
    for out in (ckpt, run):
        assert main(["export-official", f"run={run}", f"out={out}"]) == 2
        assert f"out={out}: is there already" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_export_without_a_run_says_so(tmp_path, capsys):
    assert main(["export-official", f"run={tmp_path}/absent", f"out={tmp_path}/a.pth"]) == 2
    assert "no run there" in capsys.readouterr().err


def test_import_and_export_go_through_uris(tmp_path, tensors, llm):
    remote, _ = storage.resolve("mock://imports")
    remote.create_dir("imports/run/checkpoints/000000/adapter")  # object stores need no folders, this one does
    fs.copy_files(
        written(tmp_path / "a.pth", tensors),
        "imports/a.pth",
        source_filesystem=fs.LocalFileSystem(),
        destination_filesystem=remote,
    )
    assert main(words_of("mock://imports/a.pth", llm, "mock://imports/run")) == 0
    assert main(["export-official", "run=mock://imports/run", f"out={tmp_path}/b.pth"]) == 0
    assert same_bytes(torch.load(tmp_path / "b.pth", weights_only=True)["model"], tensors)


@pytest.fixture(scope="module", params=["salmonn_small.pth", "salmonn_small_trainer.pth"])
def golden(request, tmp_path_factory) -> tuple:
    """The reference's small model as a run, and its clips as frames of the run's own encoders."""
    folder = tmp_path_factory.mktemp("golden")
    ckpt = GOLDEN / "salmonn_small" / request.param
    config = ImportConfig(
        ckpt=str(ckpt),
        llm=str(GOLDEN / "llama_small"),
        whisper=str(GOLDEN / "whisper_small"),
        beats=str(GOLDEN / "beats_small" / "beats_small.pt"),
        out=str(folder / "run"),
        num_heads=4,
    )
    import_official(config)
    run = load_run(config.out)
    encoder = load_clip_encoder(whisper=run.spec.encoders["speech"], beats=run.spec.encoders["audio"])
    waves = load_file(GOLDEN / "waves.safetensors")
    names = ("synth_2p37s", "excitement", "mountain")
    streams = encoder.encode([waves[name].double() / 32768 for name in names])
    return run, dict(zip(names, streams, strict=True)), torch.load(ckpt, weights_only=True)["model"], folder


def cases(kind: str) -> list[dict]:
    """Cases whose clips are encoded one by one and whose prompts need no padding inside, as ours never do."""
    config = GOLDEN / "salmonn_small" / "config.json"
    found = json.loads(config.read_text())[kind] if config.exists() else []
    return [case for case in found if "_alone" in case["name"] and "multi_prompt" not in case["name"]]


def batch_of(case: dict, streams: dict) -> Batch:
    """A case's clips and texts; the official prompt is the question with the audio's place before it."""
    examples = case["batch"]
    prompts = [
        case["prompts"][example["task"]] if isinstance(case["prompts"], dict) else case["prompts"][number]
        for number, example in enumerate(examples)
    ]
    questions = [
        prompt.removeprefix("<Speech><SpeechHere></Speech> ").format(example.get("Q", ""))
        for prompt, example in zip(prompts, examples, strict=True)
    ]
    clips, answers = [streams[example["clip"]] for example in examples], [example["text"] for example in examples]
    return make_batch(clips, questions, answers, heard=Heard(1500))


@pytest.mark.weights
def test_official_checkpoints_come_back_byte_for_byte(golden, tmp_path):
    *_, released, folder = golden
    found = exported(folder / "run", tmp_path / "b.pth")
    extras = released.keys() - found.keys()
    assert all(name.endswith(("inv_freq", "position_ids", "relative_attention_bias.weight")) for name in extras)
    assert same_bytes(found, {name: tensor for name, tensor in released.items() if name not in extras})


@pytest.mark.weights
@pytest.mark.parametrize("case", cases("loss_cases"), ids=lambda case: case["name"])
def test_imported_run_has_the_official_loss_from_the_waves_on(golden, case):
    run, streams, *_ = golden
    batch, outputs = batch_of(case, streams), load_file(GOLDEN / "salmonn_small" / "outputs.safetensors")
    tokens, logits, loss = (outputs[f"{case['name']}.{name}"] for name in ("audio_tokens", "target_logits", "loss"))
    found = run.model.aligner(batch.speech, batch.audio, audio_frames=batch.audio_frames)
    torch.testing.assert_close(found, tokens, atol=2e-4, rtol=0)
    torch.testing.assert_close(run.model.target_logits(batch)[0], logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(run.model.loss(batch).mean, loss[0], atol=1e-5, rtol=0)


@pytest.mark.weights
@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("case", cases("generate_cases"), ids=lambda case: case["name"])
def test_imported_run_gives_the_official_answers_from_the_waves_on(golden, case, num_beams):
    run, streams, *_ = golden
    notes = json.loads((GOLDEN / "salmonn_small" / "generation_notes.json").read_text())
    ids = notes[f"{case['name']}.beams{num_beams}"]["official_ids"][0]
    expected = run.model.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert run.model.generate(batch_of(case, streams), num_beams=num_beams, max_new_tokens=20)[0].text == expected
