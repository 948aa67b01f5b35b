"""BEATs, frozen: a released checkpoint, loaded strictly, that gives a clip the same frames in any batch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from encoders.beats.filter_banks import FilterBanks
from encoders.beats.network import Beats, BeatsConfig, count_patches
from encoders.digest import key_difference, weights_digest
from encoders.errors import EncoderError
from encoders.features import PATCH_FRAMES, Kernel

_TABLE = "encoder.layers.{}.self_attn.relative_attention_bias.weight"


class BeatsEncoder:
    """Waves to frames: filter banks, then BEATs. A clip gives the same frames alone and in any batch."""

    def __init__(
        self,
        config: BeatsConfig,
        state: Mapping[str, Tensor],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        attention: Kernel = "sdpa",
    ) -> None:
        """Build the network from `state`, under the released names.

        A classifier (`predictor`) in it is left out, copies of the shared position table under every layer are
        checked and dropped.

        Raises:
            EncoderError: If names, shapes or the copies do not fit.
        """
        own = _without_extras(state, config.encoder_layers)
        with torch.device("meta"):
            network = Beats(config, attention)
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        if difference := key_difference(set(shapes), set(own)):
            raise EncoderError(f"weights do not fit: {difference}")
        for name, tensor in own.items():
            if tuple(tensor.shape) != shapes[name]:
                raise EncoderError(f"{name} has shape {tuple(tensor.shape)}, the config says {shapes[name]}")
        network.load_state_dict(own, assign=True)
        self.digest = weights_digest(own, asdict(config))
        self.width = config.encoder_embed_dim
        self.device = torch.device(device)
        self.dtype = dtype
        self.attention = attention
        self.network = network.to(self.device, dtype).eval().requires_grad_(False)
        self.filter_banks = FilterBanks(self.device)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        attention: Kernel = "sdpa",
    ) -> "BeatsEncoder":
        """Load a released `.pt` file, `{"cfg": …, "model": …}`, fine-tuned with a classifier or not.

        Raises:
            EncoderError: If the file is not such a checkpoint.
        """
        if not Path(path).is_file():
            raise EncoderError(f"{path}: no such file; expected a BEATs checkpoint (.pt)")
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # bytes that are no checkpoint fail in any way there is
            raise EncoderError(f"{path}: not a readable checkpoint of plain tensors: {error}") from error
        if not (isinstance(checkpoint, dict) and {"cfg", "model"} <= checkpoint.keys()):
            raise EncoderError(f"{path}: expected a BEATs checkpoint with the keys 'cfg' and 'model'")
        try:
            config = BeatsConfig.from_released(checkpoint["cfg"])
            return cls(config, checkpoint["model"], device=device, dtype=dtype, attention=attention)
        except EncoderError as error:
            raise EncoderError(f"{path}: {error}") from error

    def prepare(self, waves: Sequence[Tensor]) -> list[Tensor]:
        """Return the filter banks [F, 128] of each 16 kHz wave, computed together."""
        return self.filter_banks.batch(waves)

    def count_frames(self, prepared: Tensor) -> int:
        """Return how many frames a clip's filter banks give."""
        return count_patches(len(prepared))

    @torch.inference_mode()
    def encode_prepared(self, prepared: Sequence[Tensor]) -> list[Tensor]:
        """Return the frames [8 * (F // 16), D] of each clip's filter banks [F, 128], computed as one batch.

        Raises:
            EncoderError: If a clip is shorter than one patch.
        """
        num_patches = [self.count_frames(bank) for bank in prepared]
        if 0 in num_patches:
            frames = len(prepared[num_patches.index(0)])
            raise ValueError(f"a clip has {frames} frames, one patch takes {PATCH_FRAMES}")
        whole = [bank[: len(bank) // PATCH_FRAMES * PATCH_FRAMES] for bank in prepared]
        batch_BFM = pad_sequence(whole, batch_first=True).to(self.device, self.dtype)
        num_patches_B = torch.tensor(num_patches, device=self.device)
        with torch.autocast(self.device.type, enabled=False):
            frames_BPD = self.network(batch_BFM, num_patches_B)
        return [frames[:count] for frames, count in zip(frames_BPD, num_patches, strict=True)]

    def encode(self, waves: Sequence[Tensor], *, batch_size: int = 8) -> list[Tensor]:
        """Return the frames [P, D] of each 16 kHz wave, `batch_size` at a time in the order given.

        F frames of 10 ms give P = 8 * (F // 16) patches: time steps of 160 ms, the 8 frequency bands of each in turn.
        """
        batches = (waves[start : start + batch_size] for start in range(0, len(waves), batch_size))
        return [frames for batch in batches for frames in self.encode_prepared(self.prepare(batch))]


def _without_extras(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Drop the classifier and the copies of layer 0's position table."""
    own = {name: tensor for name, tensor in state.items() if not name.startswith("predictor.")}
    for layer in range(1, layers):
        copy = own.pop(_TABLE.format(layer), None)
        if copy is not None and _TABLE.format(0) in own and not torch.equal(copy, own[_TABLE.format(0)]):
            raise EncoderError(f"{_TABLE.format(layer)} differs from layer 0's; the table is one for all layers")
    return own
