"""Window-level Q-Former: a post-norm BERT stack whose only tokens are queries that read windows of frames.

Letters: B clips, T frames, C channels of what is attended to, W windows per clip, K frames per window, N = B·W windows
of the batch, Q queries, D hidden width, H heads of width E.
"""

import torch
from torch import Tensor, nn

from qformer.windows import split_into_windows

BERT_WIDTH = 768
BERT_INIT_STD = 0.02
BERT_NORM_EPS = 1e-12


class Attention(nn.Module):
    """BERT's multi-head attention with its residual and norm, reading a context that it never projects.

    With keys W_k x + b_k and values W_v x + b_v of a head, q·(W_k x + b_k) = (W_kᵀ q)·x + q·b_k and
    Σ p (W_v x + b_v) = W_v (Σ p x) + b_v Σ p. So the few queries are projected instead of the many frames: for Q
    queries on K frames this takes about Q · (1/K + heads/D) of the arithmetic, 7 % for the paper's sizes.
    """

    def __init__(self, width: int, context_width: int, *, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(context_width, width)
        self.value = nn.Linear(context_width, width)
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=BERT_NORM_EPS)

    def forward(self, hidden_NQD: Tensor, context_NKC: Tensor) -> Tensor:
        """Return LayerNorm(hidden + output(attention)), [N, Q, D]."""
        query_NQHE = self.query(hidden_NQD).reshape(*hidden_NQD.shape[:2], self.num_heads, -1)
        key_HEC, value_HEC = (
            projection.weight.view(self.num_heads, -1, context_NKC.shape[-1]) for projection in (self.key, self.value)
        )
        key_bias_HE, value_bias_HE = (projection.bias.view(self.num_heads, -1) for projection in (self.key, self.value))

        readers_NQHC = torch.einsum("nqhe,hec->nqhc", query_NQHE, key_HEC)
        offsets_NQH = torch.einsum("nqhe,he->nqh", query_NQHE, key_bias_HE)
        scores_NQHK = torch.einsum("nqhc,nkc->nqhk", readers_NQHC, context_NKC) + offsets_NQH.unsqueeze(-1)
        weights_NQHK = self.dropout(torch.softmax(scores_NQHK * query_NQHE.shape[-1] ** -0.5, dim=-1))
        pooled_NQHC = torch.einsum("nqhk,nkc->nqhc", weights_NQHK, context_NKC)
        attended_NQHE = torch.einsum("nqhc,hec->nqhe", pooled_NQHC, value_HEC)
        attended_NQHE = attended_NQHE + weights_NQHK.sum(dim=-1, keepdim=True) * value_bias_HE
        output: Tensor = self.norm(hidden_NQD + self.dropout(self.output(attended_NQHE.flatten(2))))
        return output


class FeedForward(nn.Module):
    """LayerNorm(hidden + W2 GELU(W1 hidden)), the GELU being the exact one."""

    def __init__(self, width: int, ffn_width: int, *, dropout: float) -> None:
        super().__init__()
        self.input = nn.Linear(width, ffn_width)
        self.output = nn.Linear(ffn_width, width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=BERT_NORM_EPS)

    def forward(self, hidden_NQD: Tensor) -> Tensor:
        output: Tensor = self.norm(hidden_NQD + self.dropout(self.output(nn.functional.gelu(self.input(hidden_NQD)))))
        return output


class QFormerLayer(nn.Module):
    def __init__(self, width: int, frame_width: int, *, num_heads: int, ffn_width: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = Attention(width, width, num_heads=num_heads, dropout=dropout)
        self.cross_attention = Attention(width, frame_width, num_heads=num_heads, dropout=dropout)
        self.feed_forward = FeedForward(width, ffn_width, dropout=dropout)

    def forward(self, hidden_NQD: Tensor, windows_NKC: Tensor) -> Tensor:
        hidden_NQD = self.self_attention(hidden_NQD, hidden_NQD)
        output: Tensor = self.feed_forward(self.cross_attention(hidden_NQD, windows_NKC))
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
        windows_BWKC = split_into_windows(frames_BTC, window_frames, stride_frames)
        windows_NKC = windows_BWKC.flatten(0, 1)
        hidden_NQD = self.dropout(self.norm(self.query_tokens).expand(len(windows_NKC), -1, -1))
        for layer in self.layers:
            hidden_NQD = layer(hidden_NQD, windows_NKC)
        hidden_BWQD: Tensor = hidden_NQD.view(*windows_BWKC.shape[:2], *hidden_NQD.shape[1:])
        return hidden_BWQD

    def _initialise(self, std: float) -> None:
        """Draw BERT's initial weights; a narrower model gets a wider draw, so that activations keep their size."""
        nn.init.normal_(self.query_tokens, std=std)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)
