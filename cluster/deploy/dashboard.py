"""A dashboard for Grafana: its panels as a table, and the JSON that they become."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COLUMNS, PANEL_WIDTH, PANEL_HEIGHT = 24, 8, 7
"""Grafana's grid, and what a panel takes of it."""
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
CACHE, RUN = '{cache=~"$cache"}', '{run=~"$run"}'
JOB = "on (SessionName, WorkerId) ray_salmonn_extract_units"
"""Counters of a job that has ended stay on the node's page; this leaves those of jobs that run."""


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str
    """As Grafana names it."""
    queries: Mapping[str, str]
    """Legend -> query."""
    is_stacked: bool = False


PANELS: Mapping[str, Sequence[Panel]] = {
    "Extraction": (
        Panel(
            "Shards",
            "short",
            {"{{state}}": f"sum by (state) (ray_salmonn_extract_units{CACHE})"},
            is_stacked=True,
        ),
        Panel(
            "× real time, over ten minutes",
            "short",
            {"{{node}}": f"sum by (node) (rate(ray_salmonn_extract_audio_seconds_total{CACHE}[10m]))"},
            is_stacked=True,
        ),
        Panel(
            "Clips per second, over ten minutes",
            "short",
            {"{{node}}": f"sum by (node) (rate(ray_salmonn_extract_clips_total{CACHE}[10m]))"},
            is_stacked=True,
        ),
        Panel(
            "Hours of audio since the head's start",
            "h",
            {"{{cache}}": f"sum by (cache) (ray_salmonn_extract_audio_seconds_total{CACHE}) / 3600"},
        ),
        Panel(
            "Bytes written per second, over ten minutes",
            "Bps",
            {"{{cache}}": f"sum by (cache) (rate(ray_salmonn_extract_bytes_total{CACHE}[10m]))"},
        ),
        Panel(
            "Where the workers' time goes",
            "percentunit",
            {
                "{{part}}": f"sum by (part) (ray_salmonn_extract_part_seconds_total{CACHE} and {JOB})"
                f" / ignoring (part) group_left () sum (ray_salmonn_extract_part_seconds_total{CACHE} and {JOB})"
            },
            is_stacked=True,
        ),
        Panel(
            "Rejected clips by stage",
            "short",
            {"{{reason}}": f"sum by (reason) (ray_salmonn_extract_rejects_total{CACHE} and {JOB})"},
            is_stacked=True,
        ),
        Panel(
            "Share of the clips that is rejected",
            "percentunit",
            {
                "{{cache}}": f"sum by (cache) (ray_salmonn_extract_rejects_total{CACHE} and {JOB})"
                ' / sum by (cache) ({__name__=~"ray_salmonn_extract_(clips|rejects)_total", cache=~"$cache"}'
                f" and {JOB})"
            },
        ),
        Panel(
            "Second tries and lost workers",
            "short",
            {
                "shards tried once more": f"sum (ray_salmonn_extract_retries{CACHE})",
                "workers lost": f"sum (ray_salmonn_extract_worker_deaths{CACHE})",
            },
        ),
    ),
    "Training": (
        Panel(
            "Loss in nats per token",
            "short",
            {
                "{{run}}": f"max by (run) (ray_salmonn_train_loss{RUN})",
                "{{run}} held-out": f"max by (run) (ray_salmonn_train_valid_loss{RUN})",
            },
        ),
        Panel("Loss by task", "short", {"{{task}} {{run}}": f"max by (task, run) (ray_salmonn_train_task_loss{RUN})"}),
        Panel(
            "Share of the steps that is done",
            "percentunit",
            {"{{run}}": f"max by (run) (ray_salmonn_train_step{RUN} / ray_salmonn_train_planned_steps{RUN})"},
        ),
        Panel(
            "Examples per second", "short", {"{{run}}": f"max by (run) (ray_salmonn_train_examples_per_second{RUN})"}
        ),
        Panel(
            "Share of the time that waits for data",
            "percentunit",
            {"{{run}}": f"max by (run) (ray_salmonn_train_data_wait_fraction{RUN})"},
        ),
        Panel(
            "Skipped steps and alarms",
            "short",
            {
                "skipped {{run}}": f"max by (run) (ray_salmonn_train_skipped_steps{RUN})",
                "{{alarm}} {{run}}": f"max by (alarm, run) (ray_salmonn_train_alarms{RUN})",
            },
        ),
    ),
    "Answers": (
        Panel(
            "Questions that wait",
            "short",
            {
                "{{run}}": f"max by (run) (ray_salmonn_answer_pending{RUN})",
                "units tried once more {{run}}": f"max by (run) (ray_salmonn_answer_retries{RUN})",
            },
        ),
        Panel(
            "Answers per second, over ten minutes",
            "short",
            {"{{node}}": f"sum by (node) (rate(ray_salmonn_answers_total{RUN}[10m]))"},
            is_stacked=True,
        ),
        Panel(
            "Tokens per second, over ten minutes",
            "short",
            {"{{node}}": f"sum by (node) (rate(ray_salmonn_answer_tokens_total{RUN}[10m]))"},
            is_stacked=True,
        ),
    ),
    "Nodes": (
        Panel("Disk", "percent", {"{{ip}}": "ray_node_disk_utilization_percentage"}),
        Panel("Memory", "percentunit", {"{{ip}}": "ray_node_mem_used / ray_node_mem_total"}),
        Panel("CPUs", "percent", {"{{ip}}": "ray_node_cpu_utilization"}),
        Panel("GPUs", "percent", {"{{ip}} {{GpuIndex}}": "ray_node_gpus_utilization"}),
    ),
}


def dashboard() -> str:
    """Return the dashboard's JSON, as Grafana imports or provisions it."""
    content = {
        "uid": "salmonn",
        "title": "SALMONN",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [_source(), _choice("cache", "extract_units"), _choice("run", "(train_step|answers_total)")]
        },
        "panels": list(_placed()),
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _source() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _choice(label: str, metrics: str) -> dict[str, Any]:
    """Return a choice among the values of a label, all of them at first."""
    query = f'label_values({{__name__=~"ray_salmonn_{metrics}"}}, {label})'
    return {
        "name": label,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": label},
        "refresh": 2,  # with each change of the time range
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _placed() -> Iterator[dict[str, Any]]:
    """Yield rows and panels where they stand, three panels beside each other."""
    top, number = 0, 0
    for title, panels in PANELS.items():
        place = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
        yield {"id": (number := number + 1), "type": "row", "title": title, "gridPos": place, "panels": []}
        top += 1
        for first in range(0, len(panels), COLUMNS // PANEL_WIDTH):
            for column, panel in enumerate(panels[first : first + COLUMNS // PANEL_WIDTH]):
                place = {"x": column * PANEL_WIDTH, "y": top, "w": PANEL_WIDTH, "h": PANEL_HEIGHT}
                yield {"id": (number := number + 1), "gridPos": place, **_drawn(panel)}
            top += PANEL_HEIGHT


def _drawn(panel: Panel) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + place), "datasource": SOURCE, "expr": query, "legendFormat": legend}
        for place, (legend, query) in enumerate(panel.queries.items())
    ]
    custom: dict[str, Any] = {"fillOpacity": 20 if panel.is_stacked else 0, "spanNulls": True}
    custom |= {"stacking": {"mode": "normal" if panel.is_stacked else "none"}}
    return {
        "type": "timeseries",
        "title": panel.title,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
    }
