"""Eight everyday sounds made of numbers: each a function of a random generator, a length and a rate."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Wave = NDArray[np.float64]


@dataclass(frozen=True)
class SoundEvent:
    """A kind of sound: how to make one, and what is said of it."""

    name: str
    caption: str
    make: Callable[[Generator, Wave, int], Wave]
    """(random generator, times in seconds [samples], rate in hertz) -> samples of any loudness."""


def synthesise_event(event: SoundEvent, rng: Generator, *, seconds: float, rate_hz: int) -> Wave:
    """Return one `event`, [samples] in [-1, 1]: peak between -14 and -3 dB, white noise 30 to 45 dB below the event."""
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    clean = event.make(rng, times, rate_hz)
    noise = rng.standard_normal(times.size) * np.std(clean) * _decibels(-rng.uniform(30, 45))
    edge = np.minimum(1.0, np.minimum(times, times[::-1]) / 0.01)  # no click where a steady sound begins and ends
    noisy = (clean + noise) * edge
    return noisy * (_decibels(-rng.uniform(3, 14)) / float(np.abs(noisy).max()))


def _siren(rng: Generator, times: Wave, rate_hz: int) -> Wave:
    """A wail: one tone and two overtones, rising and falling over more than an octave."""
    swing = 0.5 + 0.5 * np.sin(2 * np.pi * (rng.uniform(0.8, 1.6) * times + rng.random()))
    pitch_hz = rng.uniform(450, 600) * rng.uniform(2.2, 2.8) ** swing
    phase = 2 * np.pi * np.cumsum(pitch_hz) / rate_hz
    return np.sin(phase) + 0.4 * np.sin(2 * phase) + 0.2 * np.sin(3 * phase)


def _bell(rng: Generator, times: Wave, rate_hz: int) -> Wave:
    """A struck bell: inharmonic partials (ratios of a church bell: hum, prime, tierce, quint, nominal, …), decaying."""
    prime_hz = rng.uniform(480, 760)
    decay_seconds = rng.uniform(0.35, 0.7)
    partials = ((0.5, 0.7), (1.0, 1.0), (1.19, 0.9), (1.5, 0.5), (2.0, 0.9), (2.66, 0.5), (3.01, 0.4), (4.1, 0.25))
    detune = rng.uniform(0.99, 1.01, len(partials))
    wave = np.zeros_like(times)
    for start in np.arange(rng.uniform(0.0, 0.15), times[-1], rng.uniform(0.55, 0.9)):
        since = np.maximum(times - start, 0.0)
        struck = times >= start
        for (ratio, level), factor in zip(partials, detune, strict=True):
            ringing = np.exp(-since * ratio**0.7 / decay_seconds) * np.sin(
                2 * np.pi * prime_hz * ratio * factor * since
            )
            wave += struck * level * ringing
    return wave


def _rain(rng: Generator, times: Wave, rate_hz: int) -> Wave:
    """A hiss without low tones, and drops: short noisy knocks at random times."""
    hiss = _band_noise(rng, times.size, rate_hz, low_hz=rng.uniform(1500, 2500), high_hz=7500)
    drops = np.zeros_like(times)
    hits = rng.integers(0, times.size, round(rng.uniform(40, 90) * times[-1]))
    np.add.at(drops, hits, rng.uniform(2, 8, hits.size))
    knock_times = np.arange(round(0.012 * rate_hz)) / rate_hz
    knock = np.exp(-knock_times / 0.003) * np.sin(2 * np.pi * rng.uniform(3000, 5000) * knock_times)
    return hiss + np.convolve(drops, knock)[: times.size]


def _engine(rng: Generator, times: Wave, rate_hz: int) -> Wave:
    """A rumble: the low harmonics of an uneven firing rate, with noise that pulses at the same rate."""
    wobble = 1 + 0.04 * np.sin(2 * np.pi * (rng.uniform(0.5, 2) * times + rng.random()))
    phase = 2 * np.pi * np.cumsum(rng.uniform(38, 70) * wobble) / rate_hz
    offsets = rng.uniform(0, 2 * np.pi, 12)
    harmonics = sum(np.sin(number * phase + offset) / number**0.8 for number, offset in enumerate(offsets, start=1))
    pulsing = np.maximum(np.sin(phase), 0.0) ** 2 * _band_noise(rng, times.size, rate_hz, low_hz=60, high_hz=900)
    return np.asarray(harmonics + rng.uniform(0.8, 1.6) * pulsing)


def _bird(rng: Generator, times: Wave, rate_hz: int) -> Wave:
    """A song of short whistles, each sliding within two to six kilohertz, with pauses between."""
    wave = np.zeros_like(times)
    start, centre_hz = rng.uniform(0, 0.1), rng.uniform(3000, 4600)
    while start < times[-1] - 0.15:
        note_seconds = rng.uniform(0.06, 0.13)
        progress = np.clip((times - start) / note_seconds, 0, 1)
        pitch_hz = centre_hz * rng.uniform(0.85, 1.15) * (1 + rng.choice((-0.3, 0.3)) * (progress - 0.5))
        wave += np.sin(np.pi * progress) ** 2 * np.sin(2 * np.pi * np.cumsum(pitch_hz) / rate_hz)
        start += note_seconds + rng.uniform(0.03, 0.12)
    return wave


def _clock(rng: Generator, times: Wave, rate_hz: int) -> Wave:
    """Dry ticks and tocks in turn, three or four a second, silence between."""
    pitches_hz = rng.uniform(1900, 2600) * np.array((1.0, rng.uniform(0.7, 0.85)))
    wave = np.zeros_like(times)
    for number, start in enumerate(np.arange(rng.uniform(0.02, 0.2), times[-1] - 0.03, rng.uniform(0.24, 0.34))):
        since = np.maximum(times - start, 0.0)
        wave += (times >= start) * np.exp(-since / 0.006) * np.sin(2 * np.pi * pitches_hz[number % 2] * since)
    return wave


def _alarm(rng: Generator, times: Wave, rate_hz: int) -> Wave:
    """Beeps of a buzzer: odd harmonics of one steady pitch, switched on and off."""
    pitch_hz = rng.uniform(850, 1250)
    gate = ((rng.uniform(3.0, 4.5) * times + rng.random()) % 1.0 < 0.5).astype(np.float64)
    soft_gate = np.convolve(gate, np.hanning(round(0.006 * rate_hz)), mode="same")
    return np.asarray(soft_gate * sum(np.sin(2 * np.pi * n * pitch_hz * times) / n for n in (1, 3, 5)))


def _wind(rng: Generator, times: Wave, rate_hz: int) -> Wave:
    """Gusts: low noise whose loudness and colour drift together."""
    gust = 0.5 + 0.5 * np.sin(2 * np.pi * (rng.uniform(0.4, 0.9) * times + rng.random()))
    deep = _band_noise(rng, times.size, rate_hz, low_hz=120, high_hz=rng.uniform(300, 420))
    high = _band_noise(rng, times.size, rate_hz, low_hz=rng.uniform(420, 500), high_hz=rng.uniform(800, 1100))
    return (0.3 + 0.7 * gust) * deep + 0.8 * gust**2 * high


SOUND_EVENTS: Mapping[str, SoundEvent] = {
    event.name: event
    for event in (
        SoundEvent("siren", "a siren is wailing", _siren),
        SoundEvent("bell", "a bell is ringing", _bell),
        SoundEvent("rain", "rain is falling", _rain),
        SoundEvent("engine", "an engine is running", _engine),
        SoundEvent("bird", "a bird is singing", _bird),
        SoundEvent("clock", "a clock is ticking", _clock),
        SoundEvent("alarm", "an alarm is beeping", _alarm),
        SoundEvent("wind", "the wind is blowing", _wind),
    )
}


def _band_noise(rng: Generator, num_samples: int, rate_hz: int, *, low_hz: float, high_hz: float) -> Wave:
    """Return noise of unit power between two frequencies."""
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    frequencies_hz = np.fft.rfftfreq(num_samples, 1 / rate_hz)
    spectrum[(frequencies_hz < low_hz) | (frequencies_hz > high_hz)] = 0
    noise = np.fft.irfft(spectrum, num_samples)
    return noise / np.std(noise)


def _decibels(level: float) -> float:
    return float(10 ** (level / 20))
