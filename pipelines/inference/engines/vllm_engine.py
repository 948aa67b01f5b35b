"""Greedy decoding by vLLM, in a process of its own: it needs other versions of PyTorch and transformers than we do."""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llm.lora import merge_lora, set_lora_scaling
from llm.salmonn import Answer, Batch, Salmonn
from llm.settings import Precision
from pipelines.errors import UserError, shorten
from pipelines.inference.engines import vllm_program
from pipelines.inference.engines.choice import EngineGoneError


class VllmEngine:
    """A model whose LLM, LoRA merged into it, is vLLM's: here are aligner, tokenizer and the embeddings of tokens."""

    def __init__(
        self, model: Salmonn, *, name: str, python: str, precision: Precision, lora_scaling: float, device: str
    ) -> None:
        """Hand the LLM over and wait until vLLM has loaded it.

        Args:
            model: On the CPU, in evaluation mode; it keeps no more of its LLM than the embeddings.
            name: What `engine_name` said where the job was started.
            python: The Python that has vLLM.
            precision: Of the run's LLM: float32 or bfloat16.
            lora_scaling: Factor on LoRA's alpha / rank.
            device: Where the aligner goes; vLLM takes the GPU if it sees one.

        Raises:
            UserError: If vLLM cannot load the LLM, or is of another version here.
        """
        set_lora_scaling(model.llm, lora_scaling)
        merged = merge_lora(model.llm)
        self._model, self._python = model, python
        self._dtype = merged.get_input_embeddings().weight.dtype
        given = [precision, str(merged.get_input_embeddings().embedding_dim), str(model.tokenizer.eos_token_id)]
        with tempfile.TemporaryDirectory(prefix="salmonn-vllm-") as folder:
            merged.save_pretrained(folder)
            model.llm = _Embeddings(merged.get_input_embeddings())
            del merged
            self._process = subprocess.Popen(
                [python, str(Path(vllm_program.__file__)), folder, *given],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            try:
                version = self._reply()["version"]
                if name != f"vllm {version}":
                    self.close()
                    raise UserError(
                        f"engine_python={python}: vLLM {version} on this machine, {name} where the job was started"
                    )
                self._reply()  # it has loaded the LLM
            except OSError as error:
                raise UserError(f"engine=vllm cannot load the LLM: {error}") from None
        model.to(device)

    @torch.no_grad()
    def generate(self, batch: Batch, *, max_new_tokens: int) -> list[Answer]:
        """Answer the batch's questions, as `Salmonn.generate` with one beam.

        Raises:
            LLMError: If the batch has not one question per clip.
            EngineGoneError: If vLLM's process has ended.
            OSError: If vLLM fails on this batch.
        """
        embeds_BTH, lengths = self._model.embed_prompts(batch)
        prompts = [row[-length:].to(self._dtype) for row, length in zip(embeds_BTH.cpu(), lengths, strict=True)]
        asked = {"lengths": lengths, "max_new_tokens": max_new_tokens}
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            for prompt in prompts:
                self._process.stdin.write(prompt.contiguous().view(torch.uint8).numpy().tobytes())
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the reply says how it ended
        eos = self._model.tokenizer.eos_token_id
        answers = [tokens[:-1] if tokens[-1:] == [eos] else tokens for tokens in self._reply()["tokens"]]
        return [self._model.answer_of(tokens) for tokens in answers]

    def close(self) -> None:
        """End vLLM's process."""
        self._process.terminate()
        self._process.communicate()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout
        if not (line := self._process.stdout.readline()):
            raise EngineGoneError(f"{self._python}: vLLM ended with exit code {self._process.wait()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise OSError(f"{self._python}: {shorten(reply['error'], 400)}")
        return reply


class _Embeddings(nn.Module):
    """What prompts need of an LLM."""

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self._embeddings = embeddings

    def get_input_embeddings(self) -> nn.Module:
        return self._embeddings
