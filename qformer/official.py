"""The aligner's part of SALMONN's released checkpoints: import and export under their names."""

from collections.abc import Mapping

from torch import Tensor

from qformer.aligner import Aligner

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
# What a checkpoint holds besides: the adapter, frozen encoders' buffers, and a buffer of BERT that is never read.
_NOT_OF_THE_ALIGNER = ("llama_model.", "beats.", "speech_encoder.", "speech_Qformer.bert.embeddings.position_ids")


def official_name(name: str) -> str:
    """Return the released checkpoints' name of an aligner's parameter."""
    for ours, theirs in _RENAMES:
        name = name.replace(ours, theirs)
    return name


def to_official(aligner: Aligner) -> dict[str, Tensor]:
    """Return the aligner's tensors under their official names."""
    return {official_name(name): tensor for name, tensor in aligner.state_dict().items()}


def load_official(aligner: Aligner, model: Mapping[str, Tensor]) -> None:
    """Load the `model` entry of an official checkpoint into the aligner: all of its part, or nothing.

    Raises:
        ValueError: If a tensor is missing, left over or of another shape; the message names them all.
    """
    own = {official_name(name): (name, tensor) for name, tensor in aligner.state_dict().items()}
    given = {name: tensor for name, tensor in model.items() if not name.startswith(_NOT_OF_THE_ALIGNER)}
    wrong = [f"{name} is missing" for name in own.keys() - given.keys()]
    wrong += [f"{name} is left over" for name in given.keys() - own.keys()]
    wrong += [
        f"{name} is {list(given[name].shape)} there and {list(own[name][1].shape)} here"
        for name in own.keys() & given.keys()
        if given[name].shape != own[name][1].shape
    ]
    if wrong:
        raise ValueError(f"official checkpoint does not fit the aligner: {'; '.join(sorted(wrong))}")
    aligner.load_state_dict({own[name][0]: tensor for name, tensor in given.items()})
