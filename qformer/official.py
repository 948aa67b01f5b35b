"""The aligner's part of SALMONN's released checkpoints: import and export under their names."""

import re
from collections.abc import Mapping

from torch import Tensor

from qformer.aligner import Aligner
from qformer.config import AlignerConfig
from qformer.errors import AlignerError

# Applied one after the other to every name of ours. The official Q-Former keeps BERT's names.
_RENAMES = (
    ("qformer.query_tokens", "speech_query_tokens"),
    ("qformer.norm.", "speech_Qformer.bert.embeddings.LayerNorm."),
    ("qformer.layers.", "speech_Qformer.bert.encoder.layer."),
    ("self_attention.", "attention."),
    ("cross_attention.", "crossattention."),
    ("attention.query.", "attention.self.query."),
    ("attention.key.", "attention.self.key."),
    ("attention.value.", "attention.self.value."),
    ("attention.output.", "attention.output.dense."),
    ("attention.norm.", "attention.output.LayerNorm."),
    ("feed_forward.input.", "intermediate_query.dense."),
    ("feed_forward.output.", "output_query.dense."),
    ("feed_forward.norm.", "output_query.LayerNorm."),
    ("projection.", "speech_llama_proj."),
)
_LAYER = re.compile(r"speech_Qformer\.bert\.encoder\.layer\.(\d+)\.")
# What a checkpoint holds besides: the adapter, the copies of frozen BEATs' shared position table that its trainer does
# not recognise as frozen, and a buffer of BERT that is never read.
MOST_NAMED = 5
"""Tensors that an error names; a checkpoint of another model would fill pages."""
_NOT_OF_THE_ALIGNER = re.compile(
    r"llama_model\."
    r"|beats\.encoder\.layers\.\d+\.self_attn\.relative_attention_bias\.weight$"
    r"|speech_Qformer\.bert\.embeddings\.position_ids$"
)


def official_name(name: str) -> str:
    """Return the released checkpoints' name of an aligner's parameter."""
    for ours, theirs in _RENAMES:
        name = name.replace(ours, theirs)
    return name


def to_official(aligner: Aligner) -> dict[str, Tensor]:
    """Return the aligner's tensors under their official names."""
    return {official_name(name): tensor for name, tensor in aligner.state_dict().items()}


def config_from_official(
    model: Mapping[str, Tensor], *, num_heads: int, window_seconds: float, stride_seconds: float
) -> AlignerConfig:
    """Read the aligner's sizes off the `model` entry of an official checkpoint; its tensors do not tell the others.

    Raises:
        AlignerError: If a tensor that tells a size is missing or has another number of axes.
    """
    _, num_queries, hidden_width = _shape(model, "qformer.query_tokens", axes=3)
    hears_audio = any(name.startswith("ln_audio.") for name in model)
    return AlignerConfig(
        num_queries=num_queries,
        window_seconds=window_seconds,
        stride_seconds=stride_seconds,
        num_layers=len({found[1] for found in map(_LAYER.match, model) if found}),
        hidden_width=hidden_width,
        num_heads=num_heads,
        ffn_width=_shape(model, "qformer.layers.0.feed_forward.input.weight", axes=2)[0],
        speech_width=_shape(model, "ln_speech.weight", axes=1)[0],
        audio_width=_shape(model, "ln_audio.weight", axes=1)[0] if hears_audio else None,
        llm_width=_shape(model, "projection.weight", axes=2)[0],
    )


def _shape(model: Mapping[str, Tensor], name: str, *, axes: int) -> list[int]:
    tensor = model.get(official_name(name))
    if tensor is None or tensor.ndim != axes:
        found = "missing" if tensor is None else f"of shape {list(tensor.shape)}, expected {axes} axes"
        raise AlignerError(f"official checkpoint does not fit the aligner: {official_name(name)} is {found}")
    return list(tensor.shape)


def load_official(aligner: Aligner, model: Mapping[str, Tensor], *, assign: bool = False) -> None:
    """Load the `model` entry of an official checkpoint into the aligner: all of its part, or nothing.

    With `assign` the tensors themselves, in their own dtype, become the weights, as in `Module.load_state_dict`.

    Raises:
        AlignerError: If a tensor is missing, left over or of another shape; the message names the first few.
    """
    own = {official_name(name): (name, tensor) for name, tensor in aligner.state_dict().items()}
    given = {name: tensor for name, tensor in model.items() if not _NOT_OF_THE_ALIGNER.match(name)}
    wrong = [f"{name} is missing" for name in own.keys() - given.keys()]
    wrong += [f"{name} is left over" for name in given.keys() - own.keys()]
    wrong += [
        f"{name} is {list(given[name].shape)} there and {list(own[name][1].shape)} here"
        for name in own.keys() & given.keys()
        if given[name].shape != own[name][1].shape
    ]
    if wrong:
        more = f"; and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        raise AlignerError(
            f"official checkpoint does not fit the aligner: {'; '.join(sorted(wrong)[:MOST_NAMED])}{more}"
        )
    aligner.load_state_dict({own[name][0]: tensor for name, tensor in given.items()}, assign=assign)
