"""A data mix: how many examples of which corpus and task an epoch holds, whatever the manifest holds.

A row draws from its examples by an endless walk, one permutation after the other, and an epoch takes up the walk where
the one before left off: a row that takes a third of its examples has shown each of them once after three epochs. A walk
depends on the seed and on its row's task and corpus alone, so that another row's weight changes nothing in it.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from omegaconf import MISSING

from pipelines import storage
from pipelines.errors import MissingError, UserError
from pipelines.interface.config import describe_yaml_error, is_yaml, load_config
from pipelines.interface.words import counted
from pipelines.storage.arrays import Indices

MIX_DIR = Path(__file__).parent / "mixes"


@dataclass(frozen=True)
class MixRow:
    task: str = MISSING
    """[name] Task of the row's examples."""
    corpus: str = ""
    """[name] Corpus of the row's examples; empty: every corpus that no other row names for the task."""
    splits: list[str] = field(default_factory=list)
    """[names] Splits of the row's examples, where the corpus names them otherwise; empty: the run's."""
    examples: int = 0
    """[examples] Most that one epoch takes before weighting; 0: all there are."""
    weight: float = 1.0
    """[factor] On the number of examples: 2 shows each twice an epoch, 0.5 every other one."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.examples < 0:
            raise UserError(f"examples={self.examples}: must be 0 or more")
        if not 0 < self.weight < math.inf:
            raise UserError(f"weight={self.weight}: must be above 0 and finite")

    @property
    def name(self) -> str:
        """The row in words, `task of corpus`."""
        return f"{self.task} of {self.corpus}" if self.corpus else self.task


@dataclass(frozen=True, eq=False)
class Share:
    """What a row draws from: indices of examples, 8 bytes each."""

    row: MixRow
    indices: Indices

    @property
    def epoch_examples(self) -> int:
        """How many places of an epoch the row fills; at least one where it has any example."""
        num_examples = min(self.row.examples or len(self.indices), len(self.indices))
        return max(round(self.row.weight * num_examples), min(num_examples, 1))

    def draw(self, seed: int, epoch: int) -> Indices:
        """Return the examples of an epoch, in the order of the row's walk."""
        count, size = self.epoch_examples, len(self.indices)
        first = epoch * count
        passes = range(first // size, -(-(first + count) // size))
        key = int.from_bytes(hashlib.sha256(f"{self.row.task}/{self.row.corpus}".encode()).digest()[:8], "big")
        walk = [np.random.Generator(np.random.PCG64([seed, key, number])).permutation(size) for number in passes]
        skipped = first - passes.start * size
        drawn: Indices = self.indices[np.concatenate(walk)[skipped : skipped + count]]
        return drawn


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mix and the examples that its rows found; rows that found none are in `empty`."""

    shares: tuple[Share, ...]
    empty: tuple[MixRow, ...]
    num_unused: int

    @property
    def epoch_examples(self) -> int:
        return sum(share.epoch_examples for share in self.shares)

    def draw(self, seed: int, epoch: int) -> Indices:
        """Return the examples of an epoch, row by row."""
        return np.concatenate([share.draw(seed, epoch) for share in self.shares])

    def describe(self) -> str:
        """Return how many examples an epoch holds and, a line per row, where they come from."""
        lines = [f"an epoch is {counted(self.epoch_examples, 'example')}"]
        lines += [
            f"  {share.epoch_examples / self.epoch_examples:6.1%}  {share.row.name}: "
            f"{share.epoch_examples} from {len(share.indices)}"
            for share in self.shares
        ]
        lines += [f"    none  {row.name}: the manifest has no such example" for row in self.empty]
        lines += (
            [f"          {self.num_unused} more are of tasks or corpora that no row names"] if self.num_unused else []
        )
        return "\n".join(lines)


def load_mix(mix: str) -> tuple[MixRow, ...]:
    """Read a mix: a name in `pipelines/mixes/`, or the URI of a YAML file that lists rows.

    Raises:
        MissingError: If there is no such mix, naming the shipped ones.
        UserError: Naming the file and the row that cannot be one, or that repeats another's task and corpus.
    """
    uri = mix if is_yaml(mix) else str(MIX_DIR / f"{mix}.yaml")
    if not storage.file_exists(uri):
        known = ", ".join(sorted(file.stem for file in MIX_DIR.glob("*.yaml")))
        raise MissingError(f"mix={mix}: neither a YAML file nor a shipped mix ({known})")
    try:
        content = yaml.safe_load(storage.read_bytes(uri))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{uri}: not YAML ({describe_yaml_error(error)})") from None
    if not isinstance(content, list) or not content:
        raise UserError(f"{uri}: must be a list of rows such as {{task: asr, corpus: librispeech, weight: 1}}")
    rows = tuple(_row(entry, f"{uri}: row {number}") for number, entry in enumerate(content, start=1))
    names = [row.name for row in rows]
    for number, name in enumerate(names, start=1):
        if name in names[: number - 1]:
            raise UserError(f"{uri}: row {number}: {name} has a row already")
    return rows


def _row(entry: object, place: str) -> MixRow:
    if not isinstance(entry, dict):
        raise UserError(f"{place}: {entry!r} is not a row such as {{task: asr, weight: 1}}")
    try:
        return load_config(MixRow, [{str(key): value for key, value in entry.items()}])
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def save_mix(rows: Sequence[MixRow], uri: str) -> None:
    """Write a mix as `load_mix` reads it."""
    storage.write_bytes(uri, yaml.safe_dump([asdict(row) for row in rows], sort_keys=False).encode())


def make_mixture(rows: Sequence[MixRow], examples: pa.Table, *, splits: Sequence[str]) -> Mixture:
    """Find every row's examples.

    Args:
        rows: The mix.
        examples: A table with the columns task, corpus and split.
        splits: Those of the run; empty: all.

    Raises:
        UserError: If no row finds any.
    """
    shares = [Share(row, _find(row, rows, examples, row.splits or splits)) for row in rows]
    found = tuple(share for share in shares if len(share.indices))
    if not found:
        pairs = examples.group_by(["task", "corpus", "split"]).aggregate([]).to_pylist()
        there = ", ".join(sorted(f"{pair['task']} of {pair['corpus']} in {pair['split']}" for pair in pairs))
        raise UserError(f"the mix finds no example: it names {', '.join(row.name for row in rows)}; there are {there}")
    num_unused = len(examples) - sum(len(share.indices) for share in found)
    return Mixture(found, tuple(share.row for share in shares if not len(share.indices)), num_unused)


def _find(row: MixRow, rows: Sequence[MixRow], examples: pa.Table, splits: Sequence[str]) -> Indices:
    named_by_others = [other.corpus for other in rows if other.task == row.task and other.corpus]
    mask = pc.equal(examples["task"], row.task)
    if row.corpus:
        mask = pc.and_(mask, pc.equal(examples["corpus"], row.corpus))
    else:
        mask = pc.and_not(mask, pc.is_in(examples["corpus"], pa.array(named_by_others, pa.string())))
    if splits:
        mask = pc.and_(mask, pc.is_in(examples["split"], pa.array(splits, pa.string())))
    return np.flatnonzero(mask.to_numpy())
