"""An encoder from outside, as docs/encoders.md shows it: from its name to answers."""

import re
import sys

import pytest
import torch

from encoders.clip_encoder import load_clip_encoder
from encoders.errors import EncoderError
from encoders.features import is_file
from encoders.own_encoder import load_own_encoder
from encoders.sound.clips import load_clip
from pipelines.cache.reader import FeatureCache
from pipelines.errors import UserError
from pipelines.inference.hearing import load_hearing
from pipelines.manifest.tables import read_clips
from pipelines.runs.spec import RunSpec
from tests import ROOT
from tests.pipelines.builders import config_of, fill, make_worker, prepare_tones, shard_digests, train_here

PAGE = (ROOT / "docs" / "encoders.md").read_text()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return what makes a module of a text importable."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text: str, name: str = "my_encoders") -> str:
        (tmp_path / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
        return name

    yield write
    sys.modules.pop("my_encoders", None)


@pytest.fixture
def hubert(module, tmp_path, monkeypatch) -> str:
    """The page's example, over a small random HuBERT in a folder of its own."""
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    convolutions = {"conv_dim": [32] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    HubertModel(HubertConfig(**sizes, **convolutions)).save_pretrained(tmp_path / "hubert")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path / "hubert")
    monkeypatch.setenv("HUBERT", str(tmp_path / "hubert"))
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(example.strip().splitlines()) <= 30
    return f"{module(example)}:hubert"


def test_the_pages_example_is_a_stream_of_fifty_frames_a_second(hubert):
    encoder = load_clip_encoder(whisper="tiny", beats=hubert)
    waves = [0.1 * torch.randn(samples) for samples in (16_000, 80_123, 480_000, 24_000)]
    together = encoder.encode(waves)
    assert encoder.widths == {"speech": 128, "audio": 48} and re.fullmatch("[0-9a-f]{64}", encoder.digests["audio"])
    for wave, clip in zip(waves, together, strict=True):
        (alone,) = encoder.encode([wave])
        assert abs(len(clip["audio"]) - len(wave) / 320) <= 2
        torch.testing.assert_close(clip["audio"], alone["audio"], atol=1e-5, rtol=1e-4)
    assert encoder.digests == load_clip_encoder(whisper="tiny", beats=hubert).digests


GOOD = """
import torch

class Means:
    digest, width = "0123456789abcdef", 4

    def encode(self, waves):
        return [wave[: len(wave) // 320 * 320].view(-1, 320).mean(1, keepdim=True).expand(-1, 4) for wave in waves]

def load(device, dtype):
    return Means()
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("digest, width = ", "digests, width = "), "what it returns has no digest"),
        (('"0123456789abcdef"', '"v1"'), "digest is 'v1'; expected 16 or more hexadecimal digits"),
        ((", 4\n", ", 0\n"), "width is 0; expected a number of channels"),
        (("for wave in waves]", "for wave in waves[:1]]"), "gave 1 clips of 3"),
        (("expand(-1, 4)", "expand(-1, 5)"), r"gave \[50, 5\], expected \[frames, 4\]"),
        (("320", "640"), r"gave 25 frames of 16000 samples; 50 a second are 50"),
        (
            ("return [wave[", "return [(wave / torch.cat(list(waves)).std())["),
            "differ from those alone by .* deviations",
        ),
        (("def load(", "def other("), "my_encoders has no function load"),
    ],
)
def test_what_cannot_be_a_stream_is_refused_before_anything_is_encoded(module, change, message):
    text = GOOD.replace(*change)
    with pytest.raises(EncoderError, match=message):
        load_own_encoder(f"{module(text)}:load", device="cpu", dtype=torch.float32)


def test_a_module_that_is_not_there_is_named_and_one_that_breaks_shows_how(module):
    with pytest.raises(EncoderError, match=r"beats=nowhere\.at:all: no module nowhere; PYTHONPATH says where it is"):
        load_clip_encoder(whisper="tiny", beats="nowhere.at:all")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        load_clip_encoder(whisper="tiny", beats=f"{module('import no_such_package')}:load")


def test_names_and_files_are_told_apart():
    assert [is_file(name) for name in ("", "tiny", "none", "a.b:c", "/x/beats.pt", "beats.pt", "s3://b/x.pt")] == [
        *([False] * 4),
        *([True] * 3),
    ]


def test_its_cache_is_extracted_learnt_and_asked_about_like_any_other(hubert, tmp_path):
    manifest = prepare_tones(tmp_path, num_clips=4)
    caches = [tmp_path / name for name in "ab"]
    for cache in caches:
        fill(cache, manifest, make_worker(cache, beats=hubert))
    assert shard_digests(caches[0]) == shard_digests(caches[1])
    config = config_of((manifest, str(caches[0])), tmp_path / "run", steps=2)
    train_here(config)
    spec = RunSpec.read(config.run)
    assert (spec.encoders["audio"], spec.aligner.audio_width) == (hubert, 48)
    with pytest.raises(UserError, match=r"which is code to be run; beats=.* allows it"):
        load_hearing(spec, config.run, device="cpu")
    hear = load_hearing(spec, config.run, device="cpu", beats=hubert)
    cache, clip = FeatureCache(str(caches[0])), next(iter(read_clips(manifest)))
    (streams,) = hear([load_clip(clip.located())])
    stored = cache.read(int(cache.positions([clip.clip_id])[0]))
    torch.testing.assert_close(streams["audio"], stored["audio"], atol=1e-2, rtol=0)
