"""The verbs of the command line: where the config of each is, and what does its work."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pipelines.errors import UserError

HELP = {"--help", "-h"}


@dataclass(frozen=True)
class Verb:
    """Where a verb's config and its function are, each as `module:name` below `pipelines`."""

    config: str
    function: str
    help: str

    def load_config_type(self) -> type:
        """Import the config alone: for a verb's help or a wrong key nothing that computes is loaded."""
        config_type: type = _load(self.config)
        return config_type

    def load_function(self) -> Callable[[Any], object]:
        """Import what does the work."""
        function: Callable[[Any], object] = _load(self.function)
        return function


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"pipelines.{module}"), name)


def _reader(corpus: str, config: str, source: str) -> Verb:
    module = f"manifest.corpora.{corpus}"
    return Verb(f"{module}:{config}", f"{module}:prepare_{corpus}", f"manifest from {source}")


def _submitted(verb: str, config: str) -> Verb:
    return Verb(f"operations.config:{config}", "operations.submit:submit", f"{verb} as a job of a cluster")


def _deployed(function: str, result: str) -> Verb:
    return Verb("operations.config:DeployConfig", f"operations.deploy:{function}", f"{result}, from a values file")


VERBS = {
    "prepare annotations": _reader("annotations", "AnnotationsConfig", "SALMONN's JSON"),
    "prepare audiocaps": _reader("audiocaps", "AudioCapsConfig", "AudioCaps"),
    "prepare clotho": _reader("clotho", "ClothoConfig", "Clotho"),
    "prepare covost": _reader("covost", "CovostConfig", "CoVoST 2"),
    "prepare esc": _reader("esc", "EscConfig", "ESC-50 or ESC-10"),
    "prepare gigaspeech": _reader("gigaspeech", "GigaSpeechConfig", "GigaSpeech"),
    "prepare iemocap": _reader("iemocap", "IemocapConfig", "IEMOCAP"),
    "prepare librimix": _reader("librimix", "LibriMixConfig", "Libri2Mix"),
    "prepare librispeech": _reader("librispeech", "LibriSpeechConfig", "LibriSpeech"),
    "prepare musiccaps": _reader("musiccaps", "MusicCapsConfig", "MusicCaps"),
    "prepare slurp": _reader("slurp", "SlurpConfig", "SLURP"),
    "prepare voxceleb": _reader("voxceleb", "VoxCelebConfig", "VoxCeleb1"),
    "prepare wavcaps": _reader("wavcaps", "WavCapsConfig", "WavCaps"),
    "prepare folder": _reader("folder", "FolderConfig", "a folder of sounds, by their folders' names"),
    "prepare table": _reader("table", "TableConfig", "CSV, JSONL, Parquet"),
    "manifest info": Verb(
        "manifest.tools.config:ManifestInfoConfig",
        "manifest.tools.info:manifest_info",
        "what a manifest holds: counts and hours",
    ),
    "manifest check": Verb(
        "manifest.tools.config:ManifestCheckConfig",
        "manifest.tools.check:manifest_check",
        "missing files, duplicates, leaks",
    ),
    "manifest sample": Verb(
        "manifest.tools.config:ManifestSampleConfig", "manifest.tools.sample:manifest_sample", "some examples to read"
    ),
    "manifest plot": Verb(
        "manifest.tools.config:ManifestPlotConfig",
        "manifest.tools.plot:manifest_plot",
        "lengths and hours as a picture",
    ),
    "plan extract": Verb(
        "extraction.config:PlanExtractConfig",
        "extraction.plan_extract:plan_extract",
        "what an extraction costs, before it runs",
    ),
    "extract": Verb(
        "extraction.config:ExtractConfig", "extraction.extract:extract", "encode every clip once into a feature cache"
    ),
    "cache info": Verb(
        "cache.tools.config:CacheInfoConfig", "cache.tools.info:cache_info", "what a feature cache holds and lacks"
    ),
    "cache verify": Verb(
        "cache.tools.config:CacheVerifyConfig", "cache.tools.verify:cache_verify", "check a cache against its index"
    ),
    "cache diff": Verb(
        "cache.tools.config:CacheDiffConfig", "cache.tools.diff:cache_diff", "in what two feature caches differ"
    ),
    "cache ls": Verb("cache.tools.config:CacheLsConfig", "cache.tools.ls:cache_ls", "a cache's clips, a line each"),
    "cache show": Verb(
        "cache.tools.config:CacheShowConfig", "cache.tools.show:cache_show", "draw a clip's wave and features"
    ),
    "cache export": Verb(
        "cache.tools.config:CacheExportConfig", "cache.tools.copy:cache_export", "a cache of some of the clips"
    ),
    "cache merge": Verb(
        "cache.tools.config:CacheMergeConfig", "cache.tools.copy:cache_merge", "one cache from several"
    ),
    "cache trim": Verb(
        "cache.tools.config:CacheTrimConfig", "cache.tools.copy:cache_trim", "a cache without the silence behind sounds"
    ),
    "cache prune": Verb(
        "cache.tools.config:CachePruneConfig", "cache.tools.prune:cache_prune", "drop clips that no manifest names"
    ),
    "recipe diff": Verb(
        "runs.config:RecipeDiffConfig", "runs.recipe_diff:recipe_diff", "where two caches' or runs' recipes differ"
    ),
    "plan train": Verb(
        "training.forecast.config:PlanTrainConfig",
        "training.forecast.plan_train:plan_train",
        "what a run takes, before it runs",
    ),
    "train": Verb("training.config:TrainConfig", "training.train:train", "train aligner and LoRA on cached features"),
    "sweep": Verb(
        "training.sweep.config:SweepConfig",
        "training.sweep.sweep:sweep",
        "many short trainings on one cache, and which was best",
    ),
    "runs list": Verb("runs.config:RunsListConfig", "runs.summary:runs_list", "what the runs of a folder came to"),
    "runs report": Verb(
        "runs.config:RunsReportConfig",
        "training.monitoring.report:runs_report",
        "a run's page anew, with what its evaluations found",
    ),
    "runs delete": Verb("runs.config:RunsDeleteConfig", "runs.delete:runs_delete", "remove a run and all its files"),
    "runs prune": Verb("runs.config:RunsPruneConfig", "runs.delete:runs_prune", "remove a run's needless checkpoints"),
    "runs compare": Verb(
        "runs.config:RunsCompareConfig", "runs.compare:runs_compare", "runs side by side where their configs differ"
    ),
    "tasks": Verb(
        "inference.scoring.config:TasksConfig",
        "inference.scoring.listing:list_tasks",
        "the tasks: question, scores, an example",
    ),
    "evaluate": Verb(
        "inference.config:EvaluateConfig", "inference.evaluate:evaluate", "decode a held-out split and score it"
    ),
    "evaluations compare": Verb(
        "inference.config:EvaluationsCompareConfig",
        "inference.compare:evaluations_compare",
        "two evaluations side by side, with intervals and p values",
    ),
    "scaling": Verb(
        "inference.studies.config:ScalingConfig",
        "inference.studies.scaling:scaling",
        "how a run's answers change with LoRA's scaling",
    ),
    "stories": Verb(
        "inference.studies.config:StoriesConfig",
        "inference.studies.stories:stories",
        "stories that a run writes, for stage 3 to learn",
    ),
    "ask": Verb("inference.config:AskConfig", "inference.ask:ask", "answer questions about recordings"),
    "serve": Verb(
        "inference.serving.config:ServeConfig",
        "inference.serving.serve:serve",
        "runs behind an address: OpenAI's API, and a page to talk to them",
    ),
    "import-official": Verb(
        "runs.config:ImportConfig",
        "runs.official:import_official",
        "a run from a checkpoint of the official SALMONN code",
    ),
    "export-official": Verb(
        "runs.config:ExportConfig",
        "runs.official:export_official",
        "a checkpoint for the official SALMONN code from a run",
    ),
    "submit extract": _submitted("extract", "SubmitExtractConfig"),
    "submit train": _submitted("train", "SubmitTrainConfig"),
    "submit sweep": _submitted("sweep", "SubmitSweepConfig"),
    "submit evaluate": _submitted("evaluate", "SubmitEvaluateConfig"),
    "jobs list": Verb("operations.config:JobsConfig", "operations.jobs:jobs_list", "a cluster's jobs, newest first"),
    "jobs status": Verb("operations.config:JobConfig", "operations.jobs:jobs_status", "how one job stands"),
    "jobs logs": Verb("operations.config:JobLogsConfig", "operations.jobs:jobs_logs", "what a job has printed"),
    "jobs stop": Verb("operations.config:JobConfig", "operations.jobs:jobs_stop", "stop a job and wait for its end"),
    "top": Verb(
        "operations.config:TopConfig", "operations.top.top:top", "how jobs stand, live, by their caches and runs alone"
    ),
    "report-bug": Verb(
        "operations.config:ReportBugConfig",
        "operations.bug_report:report_bug",
        "a file for the maintainers: versions, settings, logs, no secrets",
    ),
    "deploy values": Verb(
        "operations.config:DeployValuesConfig", "operations.deploy:deploy_values", "a values file with every key"
    ),
    "deploy kuberay": _deployed("deploy_kuberay", "RayCluster and RayJob for Kubernetes"),
    "deploy slurm": _deployed("deploy_slurm", "a job script for Slurm"),
    "deploy ray-up": _deployed("deploy_ray_up", "a cluster file for `ray up`: AWS, GCP, own machines"),
    "deploy docker": _deployed("deploy_docker", "a Dockerfile with the locked packages"),
    "deploy monitoring": Verb(
        "operations.config:DeployMonitoringConfig",
        "operations.deploy:deploy_monitoring",
        "Prometheus' config and alert rules, a dashboard for Grafana",
    ),
    "demo": Verb("demo.config:DemoConfig", "demo.demo:demo", "all of it on a corpus made here, with a report"),
}


def split_verb(words: Sequence[str]) -> tuple[str, list[str]]:
    """Return the verb that a command begins with, and the words after it.

    Raises:
        UserError: If it begins with none, naming the nearest.
    """
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in VERBS:
            return name, list(words[length:])
    typed, below = " ".join(words[:2]), [name.split()[1] for name in group_of(words[0])]
    if below and not words[1:]:
        raise UserError(f"{typed} needs one of: {', '.join(below)}")
    if below:
        near = [f"{words[0]} {name}" for name in get_close_matches(words[1], below, n=2)]
        raise UserError(f"{typed}: unknown verb; {_did_you_mean(near)}salmonn {words[0]} --help lists them")
    firsts = dict.fromkeys(name.split()[0] for name in VERBS)
    near = get_close_matches(typed, VERBS, n=2, cutoff=0.75) or get_close_matches(words[0], firsts, n=2)
    raise UserError(f"{words[0]}: unknown verb; {_did_you_mean(near)}salmonn alone lists them")


def group_of(word: str) -> list[str]:
    """Return the verbs of two words whose first is this."""
    return [name for name in VERBS if name.startswith(f"{word} ")]


def _did_you_mean(near: Sequence[str]) -> str:
    return f"did you mean {' or '.join(near)}? " if near else ""
