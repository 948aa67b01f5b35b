"""`salmonn recipe diff`: in which fields the recipes of two caches or runs differ."""

from pipelines import storage
from pipelines.cache.recipe import Recipe, read_recipe, recipe_differences
from pipelines.errors import JobIncompleteError
from pipelines.interface.words import counted
from pipelines.runs.config import RecipeDiffConfig
from pipelines.runs.spec import RunSpec


def recipe_diff(config: RecipeDiffConfig) -> None:
    """Print every field that differs.

    Raises:
        FileNotFoundError: If a folder holds neither cache nor run.
        JobIncompleteError: If the recipes differ.
    """
    differences = recipe_differences(_recipe(config.a), _recipe(config.b))
    if not differences:
        print("same recipe")
        return
    for field, a, b in differences:
        print(f"{field}\n  a  {a}\n  b  {b}")
    raise JobIncompleteError(
        f"{config.a} and {config.b} differ in {counted(len(differences), 'field')} of their recipes"
    )


def _recipe(folder: str) -> Recipe:
    if storage.file_exists(storage.join(folder, "run.json")):
        return RunSpec.read(folder).recipe
    return read_recipe(folder)[0]
