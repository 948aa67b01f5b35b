"""`salmonn ask`: one recording from disk, through encoders, aligner and LLM, to an answer."""

import torch

from encoders.audio import Segment
from encoders.codecs import dequantise, quantise
from encoders.sound.clips import load_clip
from llm.lora import set_lora_scaling
from pipelines import storage
from pipelines.batches.batch import make_batch
from pipelines.cache.encoder_recipe import load_encoder_of
from pipelines.inference.config import AskConfig
from pipelines.interface.devices import local_device
from pipelines.runs.checkpoint import load_run


def ask(config: AskConfig) -> str:
    """Print and return the answer.

    Raises:
        FileNotFoundError: If there is no such recording or run.
        AudioError: If the recording cannot be decoded.
        UserError: If the run learnt with other encoders.
    """
    torch.set_num_threads(config.threads)
    storage.open_file(config.audio).close()  # before the models are loaded
    device = local_device(config.device)
    run = load_run(config.run, checkpoint=config.checkpoint, device=device)
    wave = load_clip([Segment(config.audio)], channel=run.spec.recipe.channel, open_file=storage.open_file)
    set_lora_scaling(run.model.llm, config.lora_scaling)
    recipe = run.spec.recipe
    encoder = load_encoder_of(
        recipe,
        whisper=config.whisper or run.spec.encoders["speech"],
        beats=config.beats or run.spec.encoders["audio"],
        device=device,
        here=config.run,
        there="these encoders' output",
    )
    # Through the codec and back: the model hears what it was trained on.
    streams = {
        name: dequantise(quantise(frames, recipe.codec), recipe.codec)
        for name, frames in encoder.encode([wave])[0].items()
    }
    batch = make_batch([streams], [config.question], [], frames=run.spec.frames)
    answer = run.model.generate(batch.to(device), num_beams=config.num_beams, max_new_tokens=config.max_new_tokens)[0]
    print(answer)
    return answer
