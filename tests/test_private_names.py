"""Names of libraries that nobody promised to keep: where an upgrade takes one away, its test says what to look for."""

import importlib
from typing import NamedTuple

import pytest


class Name(NamedTuple):
    place: str
    used_in: str
    advice: str


NAMES = [
    Name(
        "ray._private.state:actors",
        "cluster/actor_state.py",
        "it tells an actor that waits for room from one that starts, and the node it was on; look for the states of "
        "actors in ray.util.state, and whether they come without the dashboard",
    ),
    Name(
        "ray._raylet:GcsClient",
        "cluster/connection.py",
        "it asks a cluster for its id within seconds, where ray.init tries for minutes; look for a public probe",
    ),
    Name(
        "ray._private.runtime_env.packaging:_dir_travel",
        "cluster/jobs/shipped.py",
        "it walks over the files that a job ships; look for what `ray job submit` zips them with",
    ),
    Name("ray._private.runtime_env.packaging:_get_excludes", "cluster/jobs/shipped.py", "it leaves out Ray's own list"),
    Name(
        "ray._private.ray_constants:DASHBOARD_CLIENT_MAX_SIZE",
        "cluster/jobs/shipped.py",
        "the job server refuses larger requests; look for client_max_size in ray/dashboard",
    ),
    Name(
        "ray._private.ray_constants:get_runtime_env_default_excludes",
        "cluster/jobs/shipped.py",
        "folders that Ray never ships; look for the exclusions in ray/_private/runtime_env/working_dir.py",
    ),
    Name(
        "ray.job_submission:JobSubmissionClient._do_request",
        "cluster/jobs/server.py",
        "every request goes through it, where it gets a time limit and its errors get words",
    ),
    Name(
        "ray.job_submission:JobSubmissionClient._raise_error",
        "cluster/jobs/server.py",
        "it makes an exception of a refusal, and ours keeps the status code; without it 404 is not told from others",
    ),
    Name(
        "ray.train.v2._internal.execution.context:get_train_context",
        "cluster/preemption.py",
        "it reads an announced preemption without the barrier of ray.train.get_preemption_info",
    ),
    Name(
        "ray.train.v2.api.data_parallel_trainer:DataParallelTrainer",
        "pipelines/training/train.py",
        "TorchTrainer is this with PyTorch imported into driver and controller; look where it has moved",
    ),
    Name(
        "ray.train.backend:Backend.share_cuda_visible_devices",
        "pipelines/training/worker/start.py",
        "it lets the workers of a machine see each other's GPUs, which NCCL needs to copy between them",
    ),
    Name(
        "ray.tune.schedulers:ASHAScheduler.on_trial_result",
        "pipelines/training/sweep/early.py",
        "a sweep that continues tells ASHA what earlier trials scored by calling it without a controller",
    ),
    Name(
        "transformers.integrations.sdpa_attention:sdpa_attention_forward",
        "llm/packing.py",
        "packed examples go through it one by one; look for the function that AttentionInterface has as 'sdpa'",
    ),
    Name("transformers.masking_utils:sdpa_mask", "llm/packing.py", "the mask of packed rows is registered beside it"),
    Name("transformers.audio_utils:mel_filter_bank", "encoders/whisper/encoder.py", "it makes Whisper's mel table"),
    Name(
        "peft.helpers:bnb",
        "llm/peft_parts.py",
        "PEFT imports bitsandbytes there, which is kept from it; if the name is gone, so may be the reason",
    ),
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.place)
def test_a_name_that_is_not_promised_is_still_there(name):
    module, _, attributes = name.place.partition(":")
    try:
        found = importlib.import_module(module)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{name.place} is gone ({error}), used in {name.used_in}: {name.advice}")


def test_bitsandbytes_still_has_the_layout_that_is_forbidden_to_it():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    linear = bitsandbytes.nn.Linear4bit(64, 64)
    assert hasattr(linear, "support_avx512bf16_for_cpu"), (
        "used in llm/loading.py: on CPUs with AVX512-BF16 the layout of the first product passes no gradient; look "
        "whether int4 still learns without the switch"
    )
