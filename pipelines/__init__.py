"""SALMONN as a pipeline: manifest → cache → batches → run → answers. The only package that imports the others."""

from importlib.util import find_spec
from pathlib import Path


def check_packages() -> None:
    """Check that all our packages come from one folder: others of the same names can be installed.

    Raises:
        ImportError: If one of them comes from elsewhere, or is missing.
    """
    ours = Path(__file__).resolve().parents[1]
    for name in ("cluster", "encoders", "llm", "qformer"):
        spec = find_spec(name)
        places = list(spec.submodule_search_locations or ()) if spec else []
        folder = Path(places[0]).resolve().parent if places else None
        if folder != ours:
            raise ImportError(
                f"package {name!r} comes from {folder or 'nowhere'} but 'pipelines' from {ours}; use a fresh "
                "environment with this project only"
            )


check_packages()  # before anything of a foreign package is imported in the belief that it is ours
