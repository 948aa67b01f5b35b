"""vLLM's side of `vllm_engine`: run by the Python of vLLM's environment, in which nothing of this project is installed.

`vllm_program.py LLM PRECISION WIDTH EOS` says on standard output, in a line of JSON each, which version it is, and that
the LLM is loaded. Then it answers each batch of standard input, a line of JSON and the prompts' numbers, with such a
line. A batch that fails costs no other. It ends, and the LLM's folder with it, when the process that asks has ended.
"""

import json
import os
import shutil
import sys
import threading
import time
import traceback
from typing import Any

GPU_SHARE = 0.85
"""Of the GPU's memory; the rest is for the aligner and the encoders beside it."""


def end_with_parent(folder: str) -> None:
    """End this process once its parent has: killed, that takes neither GPU memory nor a folder with it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(model: str, precision: str, width: int, eos: int) -> None:
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what vLLM prints is no reply
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # one process, which ends when its input does
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

    def reply(value: Any) -> None:
        print(json.dumps(value), file=replies, flush=True)

    try:
        import torch
        import vllm

        end_with_parent(model)
        reply({"version": vllm.__version__})
        llm = vllm.LLM(
            model=model,
            dtype=precision,
            skip_tokenizer_init=True,
            enable_prompt_embeds=True,
            generation_config="vllm",  # its own defaults, none of the LLM's folder
            gpu_memory_utilization=GPU_SHARE,
        )
    except Exception as error:
        reply({"error": f"{type(error).__name__}: {error}"})
        raise
    reply({"loaded": True})
    dtype = getattr(torch, precision)
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        prompts = []
        for length in asked["lengths"]:
            numbers = bytearray(sys.stdin.buffer.read(length * width * dtype.itemsize))
            prompts.append({"prompt_embeds": torch.frombuffer(numbers, dtype=dtype).view(length, width)})
        try:
            settings = vllm.SamplingParams(
                temperature=0.0,
                max_tokens=asked["max_new_tokens"],
                stop_token_ids=[eos],
                ignore_eos=True,  # which it would take from the LLM's folder
                detokenize=False,
            )
            found = llm.generate(prompts, settings, use_tqdm=False)
            reply({"tokens": [list(one.outputs[0].token_ids) for one in found]})
        except Exception as error:
            traceback.print_exc()
            reply({"error": f"{type(error).__name__}: {error}"})
    shutil.rmtree(model, ignore_errors=True)  # is there yet where whoever made it was killed


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
