"""The verbs as jobs of a cluster with token authentication, submitted from the repository's root."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.cache.reader import FeatureCache
from pipelines.runs.folder import complete_steps
from tests import ROOT
from tests.pipelines.builders import prepare_tones
from tests.ray_head import JobOutcome, RayHead

pytestmark = pytest.mark.ray
TINY_RUN = ["steps=2", "batch_examples=4", "qformer.hidden_width=32", "qformer.num_heads=2", "qformer.ffn_width=64"]


def submit(head: RayHead, verb: str, *words: str) -> JobOutcome:
    return head.submit([sys.executable, "-m", "pipelines", verb, *words], ROOT)


def test_extract_and_train_run_as_jobs_and_their_exit_codes_are_the_verbs(job_head, tmp_path):
    manifest = prepare_tones(tmp_path, num_clips=6)
    cache, run = f"cache={tmp_path}/c", f"run={tmp_path}/run"
    data = [f"manifest={manifest}", cache]
    with ThreadPoolExecutor() as pool:  # a job that is refused needs nothing of the others
        refusing = pool.submit(submit, job_head, "extract", *data, "wisper=tiny")
        extracted = submit(job_head, "extract", *data, "whisper=tiny", "beats=tiny", "workers=1")
    assert extracted.job_exit_code == 0, extracted.logs
    assert FeatureCache(str(tmp_path / "c")).num_clips == 6
    trained = submit(job_head, "train", *data, run, "llm=tiny", "heard_seconds=2", *TINY_RUN)
    assert trained.job_exit_code == 0, trained.logs
    assert complete_steps(str(tmp_path / "run")) == [2]
    refused = refusing.result()
    assert refused.job_exit_code == 2, refused.logs
    assert "unknown key wisper" in refused.logs
