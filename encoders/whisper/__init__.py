"""Whisper's encoder: waves in, 1500 frames of 20 ms out, whatever the clip's length."""
