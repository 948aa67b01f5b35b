"""The BEATs network, under the parameter names of the released checkpoints.

Letters: B clips, F filter-bank frames, M mel bands, P patches, E patch width, D width, H heads, K width of a head,
R offsets between two patches.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from encoders.beats.gated_attention import Mask, gated_attention, padding_mask
from encoders.errors import EncoderError
from encoders.features import PATCH_FRAMES, PATCHES_PER_STEP, Kernel


@dataclass(frozen=True)
class BeatsConfig:
    """The sizes of a released checkpoint's `cfg`; its switches must equal `SWITCHES`."""

    embed_dim: int = 512
    encoder_layers: int = 12
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    conv_pos: int = 128
    conv_pos_groups: int = 16
    num_buckets: int = 320
    max_distance: int = 800

    @classmethod
    def from_released(cls, cfg: Mapping[str, Any]) -> "BeatsConfig":
        """Take the sizes out of a checkpoint's `cfg`.

        Raises:
            EncoderError: If a size is missing or a switch asks for a variant that this network is not.
        """
        for name, value in SWITCHES.items():
            if cfg.get(name) != value:
                raise EncoderError(f"cfg[{name!r}] is {cfg.get(name)!r}, supported is {value!r}")
        if missing := [field.name for field in fields(cls) if field.name not in cfg]:
            raise EncoderError(f"cfg lacks {', '.join(missing)}")
        return cls(**{field.name: int(cfg[field.name]) for field in fields(cls)})


SWITCHES: dict[str, object] = {
    "input_patch_size": PATCH_FRAMES,
    "conv_bias": False,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "deep_norm": True,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
}


def count_patches(num_frames: int) -> int:
    """Return how many frames BEATs makes of so many filter-bank frames of 10 ms."""
    return PATCHES_PER_STEP * (num_frames // PATCH_FRAMES)


class Beats(nn.Module):
    def __init__(self, config: BeatsConfig, attention: Kernel = "sdpa") -> None:
        super().__init__()
        width = config.encoder_embed_dim
        self.patch_embedding = nn.Conv2d(1, config.embed_dim, PATCH_FRAMES, PATCH_FRAMES, bias=False)
        self.layer_norm = nn.LayerNorm(config.embed_dim)
        self.post_extract_proj = nn.Linear(config.embed_dim, width) if config.embed_dim != width else nn.Identity()
        self.encoder = BeatsTransformer(config, attention)
        self.attention = attention

    def forward(self, banks_BFM: Tensor, num_patches_B: Tensor) -> Tensor:
        """Return frames [B, P, D]; those after a clip's own number of patches mean nothing."""
        patches_BPE = self.patch_embedding(banks_BFM.unsqueeze(1)).flatten(2).transpose(1, 2)
        x_BPD: Tensor = self.post_extract_proj(self.layer_norm(patches_BPE))
        patches = x_BPD.shape[1]
        # The position convolution must see zeros beyond a clip's end, as it does when the clip is alone.
        is_padding_BP = torch.arange(patches, device=x_BPD.device) >= num_patches_B[:, None]
        x_BPD = x_BPD.masked_fill(is_padding_BP.unsqueeze(-1), 0.0)
        frames: Tensor = self.encoder(x_BPD, padding_mask(self.attention, num_patches_B, patches))
        return frames


class BeatsTransformer(nn.Module):
    def __init__(self, config: BeatsConfig, attention: Kernel) -> None:
        super().__init__()
        self.pos_conv = nn.ModuleList([PositionConv(config)])  # a list only for the released names
        self.layer_norm = nn.LayerNorm(config.encoder_embed_dim)
        layers = [BeatsLayer(config, attention) for _ in range(config.encoder_layers)]
        layers[0].self_attn.relative_attention_bias = nn.Embedding(config.num_buckets, config.encoder_attention_heads)
        self.layers = nn.ModuleList(layers)
        self.max_distance = config.max_distance

    def forward(self, x_BPD: Tensor, mask: Mask) -> Tensor:
        table = self.get_parameter("layers.0.self_attn.relative_attention_bias.weight")
        offsets_HR = relative_position_bias(table, x_BPD.shape[1], self.max_distance)
        x_BPD = self.layer_norm(x_BPD + self.pos_conv[0](x_BPD))
        for layer in self.layers:
            x_BPD = layer(x_BPD, offsets_HR, mask)
        return x_BPD


class PositionConv(nn.Module):
    """Grouped convolution over patches, weight-normalised over both channel axes for every tap, then GELU.

    For frozen weights only: what is derived from them is derived once.
    """

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        width, self.taps = config.encoder_embed_dim, config.conv_pos
        self.groups = config.conv_pos_groups
        self.weight_g = nn.Parameter(torch.empty(1, 1, self.taps))
        self.weight_v = nn.Parameter(torch.empty(width, width // self.groups, self.taps))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x_BPD: Tensor) -> Tensor:
        if x_BPD.device.type == "cpu" and x_BPD.dtype == torch.float32:
            return functional.gelu(self._convolve_by_fft(x_BPD))
        out_BDP = functional.conv1d(
            x_BPD.transpose(1, 2), self._weight.to(x_BPD.dtype), self.bias, padding=self.taps // 2, groups=self.groups
        )
        return functional.gelu(out_BDP[..., : x_BPD.shape[1]]).transpose(1, 2)  # an even kernel gives one too many

    @cached_property
    def _weight(self) -> Tensor:
        direction = self.weight_v.float()  # a norm over so many values is too coarse in half precision
        weight: Tensor = direction * (self.weight_g.float() / direction.norm(dim=(0, 1), keepdim=True))
        return weight

    @cached_property
    def _spectrum(self) -> Tensor:
        """The taps' spectrum, conjugate, complex [frequencies, groups, D / groups, D / groups]: out, in."""
        spectrum: Tensor = torch.fft.rfft(self._weight, n=2 * self.taps).conj().unflatten(0, (self.groups, -1))
        return spectrum.permute(3, 0, 1, 2).contiguous()

    def _convolve_by_fft(self, x_BPD: Tensor) -> Tensor:
        """Convolve block by block in the frequency domain (overlap-save): with 128 taps 6 to 9 times as fast."""
        clips, patches, width = x_BPD.shape
        hop, size = self.taps, 2 * self.taps
        blocks = -(-patches // hop)
        padded = functional.pad(x_BPD, (0, 0, hop // 2, blocks * hop + hop - hop // 2 - patches))
        # Letters here: N blocks of all clips, L frequencies, G groups, I channels of a group
        spectra_NDL = torch.fft.rfft(padded.unfold(1, size, hop)).flatten(0, 1)
        spectra_LGIN = self._spectrum @ spectra_NDL.unflatten(1, (self.groups, -1)).permute(3, 1, 2, 0).contiguous()
        out_NDS: Tensor = torch.fft.irfft(spectra_LGIN.permute(3, 1, 2, 0).flatten(1, 2), n=size)[..., :hop]
        return out_NDS.transpose(1, 2).reshape(clips, blocks * hop, width)[:, :patches] + self.bias


class BeatsLayer(nn.Module):
    """Post-norm layer, its residual branches scaled up as in DeepNorm."""

    def __init__(self, config: BeatsConfig, attention: Kernel) -> None:
        super().__init__()
        width = config.encoder_embed_dim
        self.self_attn = GatedSelfAttention(config, attention)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.encoder_ffn_embed_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_embed_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.residual_scale = (2 * config.encoder_layers) ** 0.25

    def forward(self, x_BPD: Tensor, offsets_HR: Tensor, mask: Mask) -> Tensor:
        attended = self.self_attn(x_BPD, offsets_HR, mask)
        x_BPD = self.self_attn_layer_norm(self.residual_scale * x_BPD + attended)
        hidden = self.fc2(functional.gelu(self.fc1(x_BPD)))
        out: Tensor = self.final_layer_norm(self.residual_scale * x_BPD + hidden)
        return out


class GatedSelfAttention(nn.Module):
    relative_attention_bias: nn.Embedding  # one for all layers: layer 0 holds it

    def __init__(self, config: BeatsConfig, attention: Kernel) -> None:
        super().__init__()
        width, self.heads = config.encoder_embed_dim, config.encoder_attention_heads
        self.attention = attention
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.grep_linear = nn.Linear(width // self.heads, 8)
        self.grep_a = nn.Parameter(torch.empty(1, self.heads, 1, 1))

    def forward(self, x_BPD: Tensor, offsets_HR: Tensor, mask: Mask) -> Tensor:
        q_BHPK, k_BHPK, v_BHPK = (
            projection(x_BPD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        # The gate reads the query with its bias but without the 1/sqrt(K) of the logits.
        reset_BHP, update_BHP = self.grep_linear(q_BHPK).unflatten(-1, (2, 4)).sum(-1).sigmoid().unbind(-1)
        gate_BHP = reset_BHP * (update_BHP * self.grep_a.squeeze(-1) - 1.0) + 2.0
        attended = gated_attention(q_BHPK, k_BHPK, v_BHPK, gate_BHP, offsets_HR, mask=mask, kernel=self.attention)
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return out


def relative_position_bias(table: Tensor, patches: int, max_distance: int) -> Tensor:
    """Return [H, R]: the row of `table` [buckets, H] of every offset from 1 - patches to patches - 1."""
    # On the CPU: another device's logarithm could move an offset across a bucket's edge.
    buckets = relative_bucket(torch.arange(1 - patches, patches), len(table), max_distance)
    return table[buckets.to(table.device)].T.contiguous()


def relative_bucket(offsets: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Return the bucket of each offset (key minus query): exact when near, logarithmic when far, as in T5.

    Half of the buckets are for keys after the query. Computed in float32 as the reference does.
    """
    half = num_buckets // 2
    exact = half // 2
    distance = offsets.abs()
    spread = torch.log(distance.float().clamp(min=1) / exact) / torch.log(torch.tensor(max_distance / exact))
    far = (exact + (spread * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + half * (offsets > 0)
