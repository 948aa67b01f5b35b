"""Window-level Q-Former: a post-norm BERT stack whose only tokens are queries that read windows of frames.

Letters: B clips, T frames, C frame channels, W windows per clip, K frames per window, N = B·W windows of the batch,
Q queries, D hidden width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qformer.windows import count_windows, split_into_windows

BERT_WIDTH = 768
BERT_INIT_STD = 0.02
BERT_NORM_EPS = 1e-12


class Attention(nn.Module):
    """Multi-head attention with its residual and norm: LayerNorm(hidden + output(attention))."""

    def __init__(self, width: int, context_width: int, *, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(context_width, width)
        self.value = nn.Linear(context_width, width)
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=BERT_NORM_EPS)

    def forward(self, hidden_NQD: Tensor, keys_NKD: Tensor, values_NKD: Tensor) -> Tensor:
        """Return [N, Q, D] from keys and values that are already projected."""
        attended = F.scaled_dot_product_attention(
            self._split_heads(self.query(hidden_NQD)),
            self._split_heads(keys_NKD),
            self._split_heads(values_NKD),
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        output: Tensor = self.norm(hidden_NQD + self.dropout(self.output(attended.transpose(1, 2).flatten(2))))
        return output

    def _split_heads(self, tokens_NKD: Tensor) -> Tensor:
        return tokens_NKD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """LayerNorm(hidden + W2 GELU(W1 hidden)), the GELU being the exact one."""

    def __init__(self, width: int, ffn_width: int, *, dropout: float) -> None:
        super().__init__()
        self.input = nn.Linear(width, ffn_width)
        self.output = nn.Linear(ffn_width, width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=BERT_NORM_EPS)

    def forward(self, hidden_NQD: Tensor) -> Tensor:
        output: Tensor = self.norm(hidden_NQD + self.dropout(self.output(F.gelu(self.input(hidden_NQD)))))
        return output


class QFormerLayer(nn.Module):
    def __init__(self, width: int, frame_width: int, *, num_heads: int, ffn_width: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = Attention(width, width, num_heads=num_heads, dropout=dropout)
        self.cross_attention = Attention(width, frame_width, num_heads=num_heads, dropout=dropout)
        self.feed_forward = FeedForward(width, ffn_width, dropout=dropout)

    def forward(self, hidden_NQD: Tensor, frames_BTC: Tensor, *, window_frames: int, stride_frames: int) -> Tensor:
        attention = self.self_attention
        hidden_NQD = attention(hidden_NQD, attention.key(hidden_NQD), attention.value(hidden_NQD))
        # Projected before they are windowed: overlapping windows share their frames' keys and values.
        keys_NKD, values_NKD = (
            split_into_windows(projected_BTD, window_frames, stride_frames).flatten(0, 1)
            for projected_BTD in (self.cross_attention.key(frames_BTC), self.cross_attention.value(frames_BTC))
        )
        output: Tensor = self.feed_forward(self.cross_attention(hidden_NQD, keys_NKD, values_NKD))
        return output


class QFormer(nn.Module):
    """Turn every window of frames into `num_queries` vectors, independently of all other windows."""

    def __init__(
        self,
        width: int,
        frame_width: int,
        *,
        num_queries: int,
        num_layers: int,
        num_heads: int,
        ffn_width: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.empty(1, num_queries, width))
        self.norm = nn.LayerNorm(width, eps=BERT_NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            QFormerLayer(width, frame_width, num_heads=num_heads, ffn_width=ffn_width, dropout=dropout)
            for _ in range(num_layers)
        )
        self._initialise(BERT_INIT_STD * (BERT_WIDTH / width) ** 0.5)

    def forward(self, frames_BTC: Tensor, *, window_frames: int, stride_frames: int) -> Tensor:
        """Return [B, W, Q, D].

        Raises:
            ValueError: If the clips are shorter than one window.
        """
        num_windows = count_windows(frames_BTC.shape[1], window_frames, stride_frames)
        num_clips = frames_BTC.shape[0]
        hidden_NQD = self.dropout(self.norm(self.query_tokens).expand(num_clips * num_windows, -1, -1))
        for layer in self.layers:
            hidden_NQD = layer(hidden_NQD, frames_BTC, window_frames=window_frames, stride_frames=stride_frames)
        return hidden_NQD.unflatten(0, (num_clips, num_windows))

    def _initialise(self, std: float) -> None:
        """Draw BERT's initial weights; a narrower model gets a wider draw, so that activations keep their size."""
        nn.init.normal_(self.query_tokens, std=std)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)
