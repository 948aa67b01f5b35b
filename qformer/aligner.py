"""The trainable bridge from encoder frames to LLM embeddings.

Letters: B clips, T frames, Cs and Ca channels of the speech and audio streams, A audio tokens per clip, H LLM width.
"""

import torch
from torch import Tensor, nn

from qformer.config import CLIP_FRAMES, AlignerConfig, count_reached_windows, count_windows
from qformer.qformer import QFormer
from qformer.windows import split_into_windows


class Aligner(nn.Module):
    """Normalise both streams, join them frame by frame, and turn each window into audio tokens."""

    def __init__(self, config: AlignerConfig) -> None:
        super().__init__()
        self.config = config
        self.ln_speech = nn.LayerNorm(config.speech_width)
        self.ln_audio = nn.LayerNorm(config.audio_width) if config.audio_width is not None else None
        self.qformer = QFormer(
            config.hidden_width,
            config.speech_width + (config.audio_width or 0),
            num_queries=config.num_queries,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            ffn_width=config.ffn_width,
            dropout=config.dropout,
        )
        self.projection = nn.Linear(config.hidden_width, config.llm_width)

    def forward(
        self,
        speech_BTC: Tensor,
        audio_BTC: Tensor | None,
        *,
        speech_frames: Tensor | None = None,
        audio_frames: Tensor | None = None,
    ) -> Tensor:
        """Return audio tokens [B, A, H], window by window and then query by query.

        A clip's tokens depend on its own frames and on T, the longer of the two streams as given. The speech stream
        of a clip always has 1500 frames and the audio stream no more than 1496, so T is 1500 for every clip, alone
        or in a batch.

        Args:
            speech_BTC: [B, T, Cs], any floating dtype.
            audio_BTC: [B, Ta, Ca]; its own number of frames, None exactly when the config has no audio_width.
            speech_frames: [B] integers, real frames of each row of `speech_BTC`; None when no row is padded.
            audio_frames: [B] integers, the same for `audio_BTC`.

        Raises:
            AlignerError: If a stream is missing, unexpected or of another width, or is shorter than one window.
        """
        frames_BTC = self._join(speech_BTC, audio_BTC, speech_frames, audio_frames)
        hidden_BWQD = self.qformer(
            frames_BTC, window_frames=self.config.window_frames, stride_frames=self.config.stride_frames
        )
        tokens_BAH: Tensor = self.projection(hidden_BWQD.flatten(1, 2))
        return tokens_BAH

    def by_clip(
        self, speech_BTC: Tensor, audio_BTC: Tensor | None, *, speech_frames: Tensor, audio_frames: Tensor | None = None
    ) -> Tensor:
        """Return the audio tokens [N, H] of clips of their own lengths, one clip's after the other's.

        A clip has `num_reached_tokens` of its speech frames; its last window is filled up with zeros, as a whole clip's
        audio stream is. No window of padding is computed. Arguments and errors are `forward`'s.
        """
        if speech_BTC.shape[1] > CLIP_FRAMES and not torch.is_grad_enabled():
            return self._by_span(speech_BTC, audio_BTC, speech_frames, audio_frames)
        window, stride = self.config.window_frames, self.config.stride_frames
        windows_B = torch.tensor([count_reached_windows(frames, window, stride) for frames in speech_frames.tolist()])
        frames_BTC = self._join(speech_BTC, audio_BTC, speech_frames, audio_frames)
        reached = (int(windows_B.max()) - 1) * stride + window
        frames_BTC = nn.functional.pad(frames_BTC, (0, 0, 0, max(0, reached - frames_BTC.shape[1])))[:, :reached]
        is_own_BW = torch.arange(int(windows_B.max())) < windows_B.unsqueeze(1)
        windows_NKC = split_into_windows(frames_BTC, window, stride)[is_own_BW.to(frames_BTC.device)]
        hidden_1NQD = self.qformer(windows_NKC.flatten(0, 1).unsqueeze(0), window_frames=window, stride_frames=window)
        tokens_NH: Tensor = self.projection(hidden_1NQD.flatten(0, 2))
        return tokens_NH

    def _by_span(
        self, speech_BTC: Tensor, audio_BTC: Tensor | None, speech_frames: Tensor, audio_frames: Tensor | None
    ) -> Tensor:
        """Return what `by_clip` does of clips over 30 s, in the memory that 30 s of one take."""
        window, stride = self.config.window_frames, self.config.stride_frames
        most = max(1, (CLIP_FRAMES - window) // stride + 1)
        tokens = []
        for clip, frames in enumerate(speech_frames.tolist()):
            windows = count_reached_windows(frames, window, stride)
            for first in range(0, windows, most):
                start = first * stride
                end = min(frames, start + (min(most, windows - first) - 1) * stride + window)
                audio, own = None, None
                if audio_BTC is not None:
                    heard = audio_BTC.shape[1] if audio_frames is None else int(audio_frames[clip])
                    audio = audio_BTC[clip : clip + 1, start:end]
                    own = torch.tensor([min(max(heard - start, 0), end - start)])
                span = torch.tensor([end - start])
                speech = speech_BTC[clip : clip + 1, start:end]
                tokens.append(self.by_clip(speech, audio, speech_frames=span, audio_frames=own))
        return torch.cat(tokens)

    def _join(
        self, speech_BTC: Tensor, audio_BTC: Tensor | None, speech_frames: Tensor | None, audio_frames: Tensor | None
    ) -> Tensor:
        """Return both streams normed and side by side, [B, T, Cs + Ca], zeros where a clip's stream has ended."""
        streams = [_normalise(self.ln_speech, speech_BTC, speech_frames, stream="speech")]
        if (audio_BTC is None) != (self.ln_audio is None):
            raise ValueError(f"audio_width is {self.config.audio_width}, but audio is {_describe(audio_BTC)}")
        if audio_BTC is not None and self.ln_audio is not None:
            streams.append(_normalise(self.ln_audio, audio_BTC, audio_frames, stream="audio"))
        num_frames = max(stream.shape[1] for stream in streams)
        # Padded after the norm, with zeros: the norm would turn padding into its bias.
        padded = [nn.functional.pad(stream, (0, 0, 0, num_frames - stream.shape[1])) for stream in streams]
        return torch.cat(padded, dim=-1)

    def num_tokens(self, num_frames: int = CLIP_FRAMES) -> int:
        """Return how many audio tokens a clip of `num_frames` becomes: 88 with the default windows."""
        return self.config.num_queries * count_windows(num_frames, self.config.window_frames, self.config.stride_frames)

    def num_reached_tokens(self, num_frames: int) -> int:
        """Return how many audio tokens a clip of `num_frames` becomes where each is heard at its own length."""
        config = self.config
        return config.num_queries * count_reached_windows(num_frames, config.window_frames, config.stride_frames)


def _normalise(norm: nn.LayerNorm, frames_BTC: Tensor, num_frames: Tensor | None, *, stream: str) -> Tensor:
    """Return the normed frames in the norm's dtype, zero where a row has ended."""
    if frames_BTC.ndim != 3 or frames_BTC.shape[-1] != norm.normalized_shape[0]:
        raise ValueError(f"{stream} is {_describe(frames_BTC)}, expected [clips, frames, {norm.normalized_shape[0]}]")
    normed: Tensor = norm(frames_BTC.to(norm.weight.dtype))
    if num_frames is None:
        return normed
    is_real_BT = torch.arange(normed.shape[1], device=normed.device) < num_frames.to(normed.device).unsqueeze(1)
    return normed.masked_fill(~is_real_BT.unsqueeze(-1), 0.0)


def _describe(frames: Tensor | None) -> str:
    return "missing" if frames is None else f"a tensor of shape {list(frames.shape)}"
