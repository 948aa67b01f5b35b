"""Real recordings and real small weights, all the way from sound to answers."""

import json

import pytest
import soundfile

from pipelines.inference.ask import ask
from pipelines.inference.config import AskConfig
from pipelines.manifest.corpora.table import TableConfig, prepare_table
from pipelines.runs.checkpoint import load_run
from tests import SHARED
from tests.pipelines.builders import config_of, fill, losses, make_worker, train_here

DATA = SHARED / "data"


@pytest.mark.weights
def test_real_whisper_and_real_llama_go_the_same_way(tmp_path):
    weights = DATA / "weights"
    whisper, llm = str(weights / "whisper-tiny.en-encoder"), str(weights / "tinystories-260k-llama")
    recordings = [f"{digit}_george_{take}.wav" for digit in (0, 1) for take in (0, 1)]
    rows = [{"path": name, "text": "zero" if name[0] == "0" else "one", "split": "train"} for name in recordings]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    root = DATA / "fsdd" / "recordings"
    prepare_table(TableConfig(table=str(tmp_path / "t.jsonl"), audio_root=str(root), out=str(tmp_path / "m")))
    fill(tmp_path / "c", str(tmp_path / "m"), make_worker(tmp_path / "c", whisper=whisper, beats="none"))
    config = config_of(
        (str(tmp_path / "m"), str(tmp_path / "c")), tmp_path / "run", llm=llm, steps=20, checkpoint_every=20
    )
    train_here(config)
    assert losses(config.run)[-1] < 0.5 * losses(config.run)[0]
    assert load_run(config.run).spec.llm == llm
    recording = root / "1_george_0.wav"
    assert soundfile.info(recording).samplerate == 8_000
    (answer,) = ask(AskConfig(run=config.run, audio=str(recording), question="What is said?", max_new_tokens=5))
    assert answer.answer.lower().startswith(("zero", "one"))
