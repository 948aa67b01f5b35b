"""The version of this project, and what a page says of its own making."""

from datetime import UTC, datetime
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def product_version() -> str:
    """Return the installed version; of a job's shipped copy, which is not installed, what its project states."""
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and rarely asked for

    try:
        return version("salmonn-pipeline")
    except PackageNotFoundError:
        pass
    import tomllib

    return str(tomllib.loads(PROJECT.read_text())["project"]["version"]) if PROJECT.is_file() else "unknown"


def written_now() -> str:
    """Return when and by which version a page is written."""
    return f"Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by salmonn {product_version()}."
