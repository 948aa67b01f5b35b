"""A corpus with its cache, and a run over it that nothing has broken, made once for all tests."""

from pathlib import Path

import pytest

from tests.pipelines.builders import config_of, fill, make_worker, prepare_tones, train_here


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> tuple[str, str]:
    """A manifest of 12 high and low tones, a quarter of them held out, and its cache."""
    folder = tmp_path_factory.mktemp("corpus")
    manifest = prepare_tones(folder, num_clips=12)
    fill(folder / "c", manifest, make_worker(folder / "c"))
    return manifest, str(folder / "c")


@pytest.fixture(scope="session")
def unbroken(corpus, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    train_here(config_of(corpus, run, valid_splits=["test"], valid_every=2))
    return run
