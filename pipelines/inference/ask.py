"""`salmonn ask`: one recording from disk, through encoders, aligner and LLM, to an answer."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from omegaconf import MISSING

from encoders.audio import Segment
from encoders.codecs import dequantise, quantise
from encoders.sound.clips import load_clip
from llm.lora import set_lora_scaling
from pipelines import storage
from pipelines.batches.batch import make_batch
from pipelines.cache.encoder_recipe import load_encoder_and_recipe
from pipelines.interface.config import require_range
from pipelines.interface.devices import choose_device
from pipelines.runs.checkpoint import load_run


@dataclass(frozen=True)
class AskConfig:
    run: str = MISSING
    """[URI] Run folder."""
    checkpoint: str = "last"
    """[last|best|step] Which of its checkpoints answers; best: of the lowest held-out loss."""
    audio: str = MISSING
    """[URI] The recording; its first 30 seconds are heard."""
    question: str = MISSING
    """[text] What is asked about it."""
    whisper: str = ""
    """[path|tiny] The Whisper encoder, if it has moved since extraction; its weights must be the same."""
    beats: str = ""
    """[path|tiny|none] The BEATs encoder, likewise."""
    num_beams: int = 4
    """[count] Beams of the search; 1: greedy."""
    max_new_tokens: int = 200
    """[tokens] Longest answer."""
    lora_scaling: float = 1.0
    """[factor] On LoRA's alpha/rank."""
    threads: int = 2
    """[count] CPU threads."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """[name] Where encoders and model run."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_range(self, ("num_beams", "max_new_tokens", "threads"), low=1)


def ask(config: AskConfig) -> str:
    """Print and return the answer.

    Raises:
        FileNotFoundError: If there is no such recording or run.
        AudioError: If the recording cannot be decoded.
        UserError: If the encoders are not those that the run learnt with.
    """
    torch.set_num_threads(config.threads)
    storage.open_file(config.audio).close()  # before the models are loaded
    device = choose_device(config.device)
    run = load_run(config.run, checkpoint=config.checkpoint, device=device)
    wave = load_clip([Segment(config.audio)], channel=run.spec.recipe.channel, open_file=storage.open_file)
    set_lora_scaling(run.model.llm, config.lora_scaling)
    recipe = run.spec.recipe
    encoder, found = load_encoder_and_recipe(
        whisper=config.whisper or run.spec.encoders["speech"],
        beats=config.beats or run.spec.encoders["audio"],
        codec=recipe.codec,
        precision=recipe.precision,
        device=device,
    )
    recipe.require_same(replace(recipe, streams=found.streams), here=config.run, there="these encoders' output")
    # Through the codec and back: the model hears what it was trained on.
    streams = {
        name: dequantise(quantise(frames, recipe.codec), recipe.codec)
        for name, frames in encoder.encode([wave])[0].items()
    }
    batch = make_batch([streams], [config.question], [], frames=run.spec.frames)
    answer = run.model.generate(batch.to(device), num_beams=config.num_beams, max_new_tokens=config.max_new_tokens)[0]
    print(answer)
    return answer
