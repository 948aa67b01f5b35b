"""The frozen layers of an LLM spread over several workers (FSDP2), so that each holds a part of every layer.

A layer's weights are gathered when it computes, forward and backward, and let go afterwards. What trains, the
embeddings, the last norm and the output matrix stay whole on every worker: gradients and checkpoints are the ones of an
LLM that is not spread, bit for bit.
"""

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from llm.errors import LLMError
from llm.peft_parts import PeftModel


def layers_of(llm: PeftModel) -> list[nn.Module]:
    """Return the modules that are gathered one at a time.

    Raises:
        LLMError: If the architecture does not say which of its modules are layers.
    """
    base: Any = llm.get_base_model()
    layers = [module for module in base.modules() if type(module).__name__ in (base._no_split_modules or ())]
    if not layers:
        raise LLMError(f"language models of type {base.config.model_type} cannot be spread over workers")
    return layers


def shard_llm(llm: PeftModel, device: torch.device, *, world: int) -> None:
    """Spread the LLM's layers over the process group, in place and on `device`; the rest stays where it is.

    Afterwards all workers must compute the same number of times, and `generate` does not work. LoRA has to be there
    already: what is added to a layer later would be neither gathered nor summed up.

    Raises:
        LLMError: As `layers_of`.
    """
    base: Any = llm.get_base_model()
    layers = layers_of(llm)
    mesh = init_device_mesh(device.type, (world,))
    trained = {parameter for parameter in llm.parameters() if parameter.requires_grad}
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=trained)
    spread = {parameter for layer in layers for parameter in layer.parameters()} - trained
    # The root owns no weights; it lets the next layer be gathered while one computes.
    fully_shard(base, mesh=mesh, ignored_params={*llm.parameters()} - spread)
