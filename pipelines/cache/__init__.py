"""The feature cache on disk: recipe, plan, shards, and the index that makes a shard random-access.

Extraction writes it, by `plan`, `shard` and `index`; training and evaluation read it, by `reader`.
`FeatureCache` is for those outside: `from pipelines.cache import FeatureCache`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.cache.reader import FeatureCache as FeatureCache


def __getattr__(name: str) -> Any:
    """Import the reader, and PyTorch with it, only for those who ask for it."""
    if name == "FeatureCache":
        from pipelines.cache.reader import FeatureCache

        return FeatureCache
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
