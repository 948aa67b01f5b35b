"""What training a model takes, from its shapes alone: bytes of memory and arithmetic of a step.

The model may be on the device `meta`. Letters: S examples. In formulas: T positions of the LLM in a micro-batch, H its
width, F its inner width, V its vocabulary, N target tokens, b bytes per value.
"""

from dataclasses import dataclass

from torch import nn

from llm.salmonn import Salmonn
from llm.settings import Precision
from llm.sharding import layers_of
from pipelines.storage.arrays import Integers
from qformer.aligner import Aligner

BITSANDBYTES: dict[Precision, float] = {"int8": 1.0, "int4": 0.5 + 1 / 64 + 4 / (64 * 256)}
"""Bytes per weight of a linear layer; for int4 a scale per 64 in a byte, and a scale of scales per 256 of those."""
GATHERED_LAYERS = 3
"""Layers that FSDP2 holds whole at the most: one, the buffer it was gathered in, and that of the layer before."""


@dataclass(frozen=True)
class MicroBatchSize:
    """Positions of the LLM, target tokens, frames (with their padding) and audio tokens of a micro-batch."""

    positions: int
    targets: int
    frames: int
    audio_tokens: int


class TrainCost:
    """The costs of one model, whose LLM is held in `precision`."""

    def __init__(
        self, model: Salmonn, precision: Precision, *, gradient_checkpointing: bool, device: str = "cuda"
    ) -> None:
        assert isinstance(model.aligner, Aligner)
        self._model, self._aligner = model, model.aligner
        self._precision, self._again = precision, gradient_checkpointing
        self._value_nbytes = 4 if precision == "float32" else 2
        self._mask_nbytes = 4 if device == "cpu" else 1  # per value that LoRA drops out or not
        config = model.llm.config.get_text_config()
        self._layers: int = config.num_hidden_layers
        self._width: int = config.hidden_size
        self._vocabulary: int = config.vocab_size
        self._ffn_width: int = getattr(config, "intermediate_size", None) or 4 * self._width

    @property
    def kept_formula(self) -> str:
        """`kept_nbytes` in letters."""
        layer, layers = f"T · ((8 + 4b) H + 3b F + LoRA's {self._lora_nbytes():,})", f"{self._layers} layers · "
        whole = f"{layers}T · b H + {layer}" if self._again else layers + layer
        return f"{whole} + 8 N V + the aligner's"

    def llm_nbytes(self, *, shards: int = 1) -> int:
        """Return the bytes of a worker's frozen weights; of layers that are spread its share, and three whole."""
        frozen = {id(weight): weight.nbytes for weight in self._model.parameters() if not weight.requires_grad}
        if self._precision in BITSANDBYTES:
            head = self._model.llm.get_output_embeddings()
            for module in self._model.llm.modules():
                if isinstance(module, nn.Linear) and module is not head and id(module.weight) in frozen:
                    scales = 4 * module.out_features if self._precision == "int8" else 0
                    frozen[id(module.weight)] = round(module.weight.numel() * BITSANDBYTES[self._precision]) + scales
        if shards == 1:
            return int(sum(frozen.values()))
        layers = [[frozen.get(id(w), 0) for w in layer.parameters()] for layer in layers_of(self._model.llm)]
        spread = sum(map(sum, layers))
        return int(sum(frozen.values())) - spread + spread // shards + GATHERED_LAYERS * max(map(sum, layers))

    def trainable_nbytes(self) -> int:
        """Return the bytes of the aligner's and the adapter's weights."""
        return int(sum(weight.nbytes for weight in self._model.trainable_parameters().values()))

    def kept_nbytes(self, size: MicroBatchSize) -> int:
        """Estimate what forward keeps of a micro-batch for backward.

        Per layer and position the LLM keeps the norms' inputs in float32 (8 H), queries, keys, values and what
        attention gives (4 H), gate, activation and what it is multiplied by in the inner layer (3 F), and LoRA's
        inputs; of the logits, themselves and their logarithms. With gradient checkpointing it keeps each layer's input,
        and one layer as before. The aligner keeps frames, their windows, and per token what its heads read.
        """
        value = self._value_nbytes
        layer = size.positions * ((8 + 4 * value) * self._width + 3 * value * self._ffn_width + self._lora_nbytes())
        layers = layer + size.positions * self._layers * self._width * value if self._again else self._layers * layer
        return layers + 8 * size.targets * self._vocabulary + self._aligner_kept_nbytes(size)

    def _lora_nbytes(self) -> int:
        """Return what LoRA's modules keep of a position in a layer: their inputs in float32, and dropout's masks.

        Inputs that are neither cast nor dropped out count once for all of a width in one part of the layer.
        """
        weights = self._model.trainable_parameters().items()
        inputs = [
            (name.split(".lora_A.")[0].rpartition(".")[0], A.shape[1]) for name, A in weights if ".lora_A." in name
        ]
        dropout = self._model.llm.active_peft_config.lora_dropout
        widths = [width for _, width in (inputs if dropout or self._value_nbytes < 4 else set(inputs))]
        return (4 + (self._mask_nbytes if dropout else 0)) * sum(widths) // self._layers

    def _aligner_kept_nbytes(self, size: MicroBatchSize) -> int:
        config, tokens = self._aligner.config, size.audio_tokens
        channels = config.speech_width + (config.audio_width or 0)
        windows = tokens // config.num_queries * config.window_frames * channels
        read = 2 * config.num_heads * (channels + config.hidden_width)
        per_token = config.num_layers * (read + 3 * config.ffn_width + 12 * config.hidden_width)
        return 4 * (size.frames * channels + windows + tokens * per_token)

    def mean_flop(self, positions_S: Integers, targets_S: Integers, audio_tokens_S: Integers) -> float:
        """Return the operations of one of S examples, forward and backward, a multiply-add being two.

        A frozen weight takes two per position each way, one that learns four in backward; attention goes over a square
        of positions. With gradient checkpointing the layers go forward once more.
        """
        embeddings = (self._model.llm.get_input_embeddings(), self._model.llm.get_output_embeddings())
        outside = {id(module.weight) for module in embeddings}
        parameters = {id(weight): weight for weight in self._model.llm.parameters() if weight.ndim == 2}
        frozen = sum(w.numel() for key, w in parameters.items() if not w.requires_grad and key not in outside)
        adapter = sum(w.numel() for w in parameters.values() if w.requires_grad)
        passes = 3 if self._again else 2
        layers = float(positions_S.mean()) * (2 * passes * frozen + 2 * (passes + 1) * adapter)
        attention = float((positions_S**2).mean()) * (2 * passes + 2) * 2 * self._width * self._layers
        head = float(targets_S.mean()) * 2 * 2 * self._width * self._vocabulary
        aligner = sum(weight.numel() for weight in self._aligner.parameters())
        return float(layers + attention + head) + 6 * aligner * float(audio_tokens_S.mean())
