"""`salmonn cache ls`: the clips of a feature cache, a line each."""

from collections.abc import Iterator
from itertools import islice

from pipelines.cache.bounds import read_checked
from pipelines.cache.index import committed_units, member_names
from pipelines.cache.layout import unit_name
from pipelines.cache.plan import read_units
from pipelines.cache.recipe import Recipe, read_recipe
from pipelines.cache.tools.config import CacheLsConfig
from pipelines.errors import UserError
from pipelines.interface.words import counted


def cache_ls(config: CacheLsConfig) -> None:
    """Print the clips in the order of their shards, one unit in memory at a time.

    Raises:
        FileNotFoundError: If there is no cache.
        UserError: If the shard is not complete.
    """
    recipe, _ = read_recipe(config.cache)
    committed = committed_units(config.cache)
    if config.shard >= 0:
        if config.shard not in committed:
            raise UserError(f"shard={config.shard}: {config.cache} holds no complete shard {unit_name(config.shard)}")
        committed = frozenset({config.shard})
    lines = _lines(config, recipe, committed)
    frames = "".join(f"  {stream + ' frames':>13}" for stream in recipe.streams)
    print(f"{'clip_id':<32}  {'shard':>6}  {'seconds':>7}{frames}  {'kB':>8}  corpus, split")
    shown = 0
    for line in islice(lines, config.limit or None):
        print(line)
        shown += 1
    more = next(lines, None) is not None
    print(counted(shown, "clip") + ("; there are more, limit=0 shows all" if more else ""))


def _lines(config: CacheLsConfig, recipe: Recipe, committed: frozenset[int]) -> Iterator[str]:
    for unit in read_units(config.cache):
        if unit.unit not in committed:
            continue
        clips = {clip.clip_id: clip for clip in unit.clips}
        for row in read_checked(config.cache, unit.unit, recipe).to_pylist():
            clip = clips.get(row["clip_id"])
            if not row["clip_id"].startswith(config.clip) or clip is None or config.corpus not in ("", clip.corpus):
                continue
            frames = "".join(f"  {row[f'{stream}_frames']:>13}" for stream in recipe.streams)
            nbytes = sum(row[f"{member}_nbytes"] for member in member_names(recipe))
            place = f"{row['clip_id']}  {unit.unit_id:>6}  {row['seconds']:>7.2f}{frames}  {nbytes / 1e3:>8.1f}"
            yield f"{place}  {clip.corpus}, {clip.split}"
