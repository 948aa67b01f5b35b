"""What a frozen LLM is called where its adapter goes: its name on the hub if that is known."""

import json
import re
from pathlib import Path

from llm.settings import is_hub_name

_HUB_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/")


def hub_name(llm: str) -> str | None:
    """Return the name on the hub, organisation/model, of a language model given by its name or its folder.

    A folder tells it by its place in the hub's cache, or by what its config.json says that it was loaded from.
    """
    if is_hub_name(llm):
        return llm
    if cached := _HUB_CACHE.search(f"{Path(llm).absolute()}/"):
        return "/".join(cached.groups())
    try:
        origin = json.loads((Path(llm) / "config.json").read_text()).get("_name_or_path", "")
    except (OSError, ValueError, AttributeError):
        return None
    return origin if is_hub_name(origin) else None


def base_name(llm: str) -> str:
    """Return what an adapter's config says of its base: the name on the hub, or words that the hub is not asked for."""
    return hub_name(llm) or f"{Path(llm).name} (a local folder when the adapter was trained)"
