"""Whisper's encoder network, with the parameter names of the Hugging Face layout.

Written here rather than taken from transformers because importing that model takes 9 s of a processor, which every
encoding process would spend before its first clip. Letters: B clips, M mel bands, T frames, H heads, D width.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class WhisperSizes:
    """The encoder's part of a Whisper config.json, under its names there."""

    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    num_mel_bins: int
    max_source_positions: int


class WhisperNetwork(nn.Module):
    """Two convolutions, the second halving the rate, a position table, and pre-norm transformer layers."""

    def __init__(self, sizes: WhisperSizes) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(sizes.num_mel_bins, sizes.d_model, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(sizes.d_model, sizes.d_model, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(sizes.max_source_positions, sizes.d_model)
        self.layers = nn.ModuleList(EncoderLayer(sizes) for _ in range(sizes.encoder_layers))
        self.layer_norm = nn.LayerNorm(sizes.d_model)

    def forward(self, mel_BMT: Tensor) -> Tensor:
        """Return [B, T / 2, D] of a log-mel with twice as many frames as there are positions."""
        hidden_BDT = functional.gelu(self.conv1(mel_BMT))
        hidden_BTD = functional.gelu(self.conv2(hidden_BDT)).transpose(1, 2) + self.embed_positions.weight
        for layer in self.layers:
            hidden_BTD = layer(hidden_BTD)
        normed: Tensor = self.layer_norm(hidden_BTD)
        return normed


class EncoderLayer(nn.Module):
    def __init__(self, sizes: WhisperSizes) -> None:
        super().__init__()
        self.self_attn = SelfAttention(sizes.d_model, sizes.encoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(sizes.d_model)
        self.fc1 = nn.Linear(sizes.d_model, sizes.encoder_ffn_dim)
        self.fc2 = nn.Linear(sizes.encoder_ffn_dim, sizes.d_model)
        self.final_layer_norm = nn.LayerNorm(sizes.d_model)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        attended: Tensor = self.self_attn(self.self_attn_layer_norm(hidden_BTD))
        hidden_BTD = hidden_BTD + attended
        widened = functional.gelu(self.fc1(self.final_layer_norm(hidden_BTD)))
        fed: Tensor = self.fc2(widened)
        return hidden_BTD + fed


class SelfAttention(nn.Module):
    """Multi-head attention over all frames; keys have no bias."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        query, key, value = (self._split(part(hidden_BTD)) for part in (self.q_proj, self.k_proj, self.v_proj))
        attended_BHTd = functional.scaled_dot_product_attention(query, key, value)
        joined: Tensor = self.out_proj(attended_BHTd.transpose(1, 2).flatten(2))
        return joined

    def _split(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD.view(*hidden_BTD.shape[:2], self.num_heads, -1).transpose(1, 2)
