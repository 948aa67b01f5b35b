"""Where a training worker begins. Imports little: the controller of a job loads this module too, and never trains."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import ray
from ray import train as ray_train
from ray.train.backend import Backend, BackendConfig

from cluster.logs import set_up_logging
from pipelines.errors import JobIncompleteError
from pipelines.runs.folder import complete_steps
from pipelines.training.config import TrainConfig

if TYPE_CHECKING:
    import torch


def train_loop(settings: dict[str, list[TrainConfig]]) -> str:
    """Train runs one after the other on one worker of a Ray Train job, but for complete ones.

    Returns why it stopped before the end, which trying again would not change; an exception is tried again.
    """
    import torch.distributed as dist

    from cluster.preemption import preemption_announced
    from pipelines.training.worker.loop import TrainWorker

    context = ray_train.get_context()
    rank, world, device = context.get_world_rank(), context.get_world_size(), _own_device()
    set_up_logging(f"rank {rank}")  # into the process's file in Ray's session folder
    for config in settings["configs"]:
        if complete_steps(config.run)[-1:] != [config.steps]:
            try:
                TrainWorker(config, rank, world, device, preempted=preemption_announced).run()
            except JobIncompleteError as error:
                return str(error)
        if dist.is_initialized():
            dist.barrier()  # rank 0 has written what the next run starts from
    if dist.is_initialized():
        dist.destroy_process_group()
    return ""


def _own_device() -> torch.device:
    """Return the GPU that Ray gave to this worker, or the CPU."""
    import torch

    if not ray.get_gpu_ids():
        return torch.device("cpu")
    from ray.train.torch import get_device

    device: torch.device = get_device()
    return device


@dataclass
class ProcessGroup(BackendConfig):
    """Joins the workers of a job to one process group of PyTorch, over gloo or NCCL, before they train.

    Ray's TorchConfig does the same, but driver and controller have to import PyTorch for it.
    """

    timeout_seconds: float

    @property
    def backend_cls(self) -> type[Backend]:
        return _ProcessGroupBackend


class _ProcessGroupBackend(Backend):
    share_cuda_visible_devices = True  # NCCL copies from GPU to GPU of a machine only where both see both

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, ProcessGroup)
        world = len(worker_group)
        if world == 1:
            return
        address = worker_group.execute_single(0, _free_address)
        joined = [
            worker_group.execute_single_async(rank, _join, address, rank, world, backend_config.timeout_seconds)
            for rank in range(world)
        ]
        ray.get(joined)


def _free_address() -> str:
    with socket.socket() as server:
        server.bind(("", 0))
        return f"tcp://{ray.util.get_node_ip_address()}:{server.getsockname()[1]}"


def _join(address: str, rank: int, world: int, timeout_seconds: float) -> None:
    import torch
    import torch.distributed as dist

    device = _own_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=address,
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=timeout_seconds),
    )
