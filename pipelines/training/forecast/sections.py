"""What `salmonn plan train` finds out about a run, part by part, and the table that shows it."""

from dataclasses import dataclass

from llm.settings import Precision
from pipelines.interface.words import counted
from pipelines.training.forecast.calibration import StepTime

Lines = list[tuple[str, str]]
"""Name and text; a line without a name goes on with the one before."""


@dataclass(frozen=True)
class Hearing:
    """What the whole run hears."""

    examples: int
    missing: int
    """Examples whose clips the cache lacks."""
    examples_by_task: dict[str, int]
    """Of an epoch."""
    epoch_examples: int
    epochs: float
    clips: int
    audio_hours: float
    """Clips count as often as they are heard."""

    def lines(self) -> Lines:
        tasks = ", ".join(f"{task} {count:,}" for task, count in self.examples_by_task.items())
        missing = f"; {self.missing:,} more lack their clips in the cache" if self.missing else ""
        return [
            ("examples", f"{self.examples:,}{missing}; an epoch holds {self.epoch_examples:,}: {tasks}"),
            ("hears", f"{self.epochs:,.2f} epochs, {self.clips:,} clips, {self.audio_hours:,.3f} h with repetitions"),
        ]


@dataclass(frozen=True)
class Lengths:
    """Positions of the LLM that an example takes, in a sample; prompt's and answer's are means."""

    sampled: int
    audio: float
    prompt: float
    answer: float
    mean: float
    p50: float
    p95: float
    longest: int
    cut_fraction: float
    """Share of the answers that max_answer_tokens cuts."""

    def lines(self) -> Lines:
        parts = f"{round(self.audio, 1):g} audio + {self.prompt:,.1f} prompt + {self.answer:,.1f} answer"
        quantiles = f"half up to {self.p50:,.0f}, 95 % up to {self.p95:,.0f}, the longest {self.longest:,}"
        return [
            ("positions", f"{self.mean:,.1f} per example: {parts} ({self.sampled:,} examples sampled)"),
            ("", f"{quantiles}; {self.cut_fraction:.2%} of the answers are cut"),
        ]


@dataclass(frozen=True)
class Reading:
    """What storage must give; the rates keep workers computing all the time."""

    nbytes_per_example: float
    worker_megabytes_per_second: float
    megabytes_per_second: float
    """All workers."""

    def lines(self) -> Lines:
        rates = f"{self.worker_megabytes_per_second:,.1f} MB/s keep a worker busy, {self.megabytes_per_second:,.1f} all"
        return [("reading", f"{self.nbytes_per_example / 1e6:,.3f} MB per example; {rates}")]


@dataclass(frozen=True)
class Memory:
    """Bytes that each worker holds: all but the last two on its device."""

    precision: Precision
    llm: int
    weights: int
    gradients: int
    """With their sums over the workers."""
    optimizer: int
    kept: int
    """What forward keeps for backward, estimated for the largest micro-batch of the sample; one trial's."""
    kept_formula: str
    device: int
    """All of these together."""
    measured: int | None
    """The most that a GPU held in the calibration."""
    trials: int
    """Of a sweep over this LLM, each with weights, gradients and optimizer of its own; 1: a run by itself."""
    read_ahead: int
    tables: int
    """The examples and the cache's index, which the processes of a machine share."""

    def lines(self) -> Lines:
        measured = "" if self.measured is None else f"; {_gigabytes(self.measured)} at the most where it was measured"
        whose = "a worker's device" if self.trials == 1 else f"the device of {self.trials} trials by turns"
        each = "" if self.trials == 1 else f" of {self.trials} trials"
        tables = _gigabytes(self.tables)
        trained = _gigabytes(self.weights + self.optimizer)
        return [
            ("memory", f"{_gigabytes(self.device)} on {whose}{measured}:"),
            ("", f"{_gigabytes(self.llm)} frozen LLM in {self.precision}"),
            ("", f"{trained} aligner and LoRA{each}, and AdamW's two means of each weight"),
            ("", f"{_gigabytes(self.gradients)} their gradients, and those summed over the workers"),
            ("", f"{_gigabytes(self.kept)} kept for backward, an estimate: {self.kept_formula}"),
            ("", f"beside it {_gigabytes(self.read_ahead)} read ahead, and once a machine {tables} examples and index"),
        ]


@dataclass(frozen=True)
class Duration:
    """How long the steps take that are left."""

    steps: int
    steps_done: int
    batch_examples: int
    workers: int
    step: StepTime
    step_seconds: float
    data_wait_fraction: float
    teraflops: float
    """Per second, that a worker attains while it computes."""
    examples_per_second: float
    hours: float
    validation_hours: float
    """Part of the hours."""
    device_hours: float

    def lines(self) -> Lines:
        measured = f"{counted(self.step.measured_steps, 'step')} measured on {self.step.device}"
        source = measured if self.step.measured_steps else self.step.device
        speed = f"{self.examples_per_second:,.4g} examples/s, {self.teraflops:,.3g} TFLOP/s per worker"
        reading = self.step.read_seconds
        waiting = f"; reading {reading:,.3g} s meanwhile: {self.data_wait_fraction:.0%} waiting" if reading else ""
        done = f", {self.steps_done:,} of them done" if self.steps_done else ""
        steps = f"{counted(self.steps, 'step')} of {counted(self.batch_examples, 'example')}{done}"
        devices = f"{self.workers} worker{'s' if self.workers > 1 else ''}"
        validation = f", {self.validation_hours:,.3f} h of it validation" if self.validation_hours else ""
        return [
            (
                "step",
                f"{self.step_seconds:,.4g} s ({source}), {speed}{waiting}",
            ),
            ("time", f"{self.hours:,.3f} h for {steps}{validation}; {self.device_hours:,.3f} device hours, {devices}"),
        ]


@dataclass(frozen=True)
class Caching:
    """The cache against encoding each example in its step, over the whole run, in device hours."""

    clips_per_second: float
    devices: str
    online_hours: float
    extract_hours: float
    break_even_epochs: float
    speedup: float
    """How many times as long the run would take."""

    def lines(self) -> Lines:
        online = f"{self.online_hours:,.3f} device hours ({self.clips_per_second:,.3f} clips/s, {self.devices})"
        return [
            (
                "cache",
                f"paid for after {self.break_even_epochs:,.2f} epochs, {self.speedup:,.2f} times as fast with it:",
            ),
            ("", f"encoding in each step would take {online}, these clips once {self.extract_hours:,.3f}"),
        ]


@dataclass(frozen=True)
class TrainForecast:
    """What a run takes."""

    hearing: Hearing
    lengths: Lengths
    reading: Reading
    memory: Memory
    duration: Duration
    caching: Caching | None
    """None where nobody knows what encoding costs."""

    def table(self) -> str:
        """Return the lines of all parts, and the key with which training compares what comes."""
        unknown = "jobs/ does not record what encoding cost; clips_per_second=… states it (salmonn plan extract)"
        lines = [*self.hearing.lines(), *self.lengths.lines(), *self.reading.lines(), *self.memory.lines()]
        lines += [*self.duration.lines(), *(self.caching.lines() if self.caching else [("cache", unknown)])]
        key = f"forecast_step_seconds={self.duration.step_seconds:.4g}"
        lines.append(("report", f"salmonn train … {key} compares this with what comes"))
        return table_of(lines)


def table_of(lines: Lines) -> str:
    return "\n".join(f"{name:<11}{text}" for name, text in lines)


def _gigabytes(nbytes: int) -> str:
    return f"{nbytes / 1e9:,.3f} GB"
