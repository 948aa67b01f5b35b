"""Each alert fires by a fault that deserves it and by no other, as Prometheus' own tool says; what the files hold.

Covers cluster.deploy.dashboard.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from cluster.deploy.dashboard import COLUMNS, PANELS
from cluster.deploy.monitoring import ALERTS, DASHBOARD, SCRAPE, MonitoringSettings, monitoring_files
from cluster.errors import ClusterError
from pipelines.metrics import METRICS
from tests import ROOT

FILES = monitoring_files(MonitoringSettings())
RULES = [rule for group in yaml.safe_load(FILES[ALERTS])["groups"] for rule in group["rules"]]
OF_RAY = {"ray_node_disk_utilization_percentage", "ray_node_mem_used", "ray_node_mem_total"}
OF_RAY |= {"ray_node_cpu_utilization", "ray_node_gpus_utilization"}

needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool, of Debian's package prometheus")

CACHE = 'cache="/c", SessionName="s", WorkerId="1", NodeAddress="10.0.0.1"'
RUN = 'run="/r", SessionName="s", WorkerId="2", NodeAddress="10.0.0.1"'
DISK = 'instance="10.0.0.2:9100", mountpoint="/data", fstype="ext4"'
UNDISTURBED = {
    f'ray_salmonn_extract_units{{{CACHE}, state="queued"}}': "200-1x100",
    f'ray_salmonn_extract_units{{{CACHE}, state="running"}}': "2+0x100",
    f'ray_salmonn_extract_units{{{CACHE}, state="done"}}': "0+1x100",
    f'ray_salmonn_extract_units{{{CACHE}, state="failed"}}': "0+0x100",
    f"ray_salmonn_extract_retries{{{CACHE}}}": "0+0.1x100",
    f'ray_salmonn_extract_clips_total{{{CACHE}, node="a"}}': "0+100x100",
    f'ray_salmonn_extract_rejects_total{{{CACHE}, reason="open"}}': "0+1x100",
    f"ray_salmonn_train_step{{{RUN}}}": "0+10x100",
    f"ray_salmonn_train_planned_steps{{{RUN}}}": "5000+0x100",
    f'ray_salmonn_train_alarms{{{RUN}, alarm="plateau"}}': "1+0x100",  # it rang before this launch
    f'ray_salmonn_train_alarms{{{RUN}, alarm="data wait"}}': "0+0x100",
    f"ray_salmonn_answer_pending{{{RUN}}}": "2000-10x100",
    'ray_node_disk_utilization_percentage{ip="10.0.0.1"}': "60+0x100",
    f"node_filesystem_avail_bytes{{{DISK}}}": "50+0x100",
    f"node_filesystem_size_bytes{{{DISK}}}": "100+0x100",
    'up{job="ray", instance="10.0.0.1:1"}': "1+0x100",
}
"""Series of a minute's steps."""
GONE = "stale _x100"
FAULTS: dict[str, tuple[dict[str, str], dict[str, str], str]] = {
    "SalmonnExtractionStalled": (
        {'state="queued"': "100+0x100", 'state="done"': "7+0x100"},
        {"cache": "/c"},
        "/c: no shard was committed for 30 minutes, and some are queued",
    ),
    "SalmonnExtractionEndedEarly": (
        {f"{CACHE}": f"0+0x40 {GONE}", 'state="queued"': f"5+0x50 {GONE}", 'state="running"': f"2+0x50 {GONE}"},
        {"cache": "/c"},
        "/c: the job is gone, and 7 shards were not done",
    ),
    "SalmonnExtractionRejects": (
        {'reason="open"': "0+25x100"},
        {"cache": "/c"},
        "/c: 20% of the clips were rejected",
    ),
    "SalmonnExtractionRetries": (
        {"extract_retries": "0+1x100"},
        {"cache": "/c"},
        "/c: 30 shards were tried once more in half an hour",
    ),
    "SalmonnExtractionShardsFailed": (
        {'state="failed"': "0+0x50 2+0x50"},
        {"cache": "/c"},
        "/c: 2 shards were given up; the job will end with 1",
    ),
    "SalmonnTrainingStalled": (
        {"train_step": "70+0x100"},
        {"run": "/r"},
        "/r: stays at step 70 for 30 minutes",
    ),
    "SalmonnTrainingEndedEarly": (
        {
            "train_step": f"70+0x20 80+0x30 {GONE}",
            "planned_steps": f"5000+0x50 {GONE}",
            "train_alarms": f"0+0x50 {GONE}",
        },
        {"run": "/r"},
        "/r: the job is gone, and 4920 steps were left",
    ),
    "SalmonnTrainingPlateau": (
        {'alarm="plateau"': "0+0x50 1+0x50"},
        {"run": "/r"},
        "/r: the loss falls no more",
    ),
    "SalmonnTrainingAlarm": (
        {'alarm="data wait"': "1+0x50 2+0x50"},
        {"run": "/r", "alarm": "data wait"},
        "/r: data wait",
    ),
    "SalmonnAnsweringStalled": (
        {"answer_pending": "40+0x100"},
        {"run": "/r"},
        "/r: 40 questions wait, and none was answered for 30 minutes",
    ),
    "SalmonnDiskNearlyFull": (
        {"node_filesystem_avail_bytes": "5+0x100"},
        {"instance": "10.0.0.2:9100", "mountpoint": "/data", "fstype": "ext4"},
        "10.0.0.2:9100 /data: 95% full",
    ),
    "SalmonnRayUnreachable": (
        {"up{": "0+0x100"},
        {"job": "ray", "instance": "10.0.0.1:1"},
        "10.0.0.1:1 gives no metrics: nobody sees how jobs stand",
    ),
}
"""Alert -> series that are otherwise, by a part of their names; labels; what is said at the end of an hour."""


def promtool(folder: Path, *words: str) -> str:
    for name, text in FILES.items():
        (folder / name).write_text(text)
    done = subprocess.run(["promtool", *words], cwd=folder, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def require_alerts(folder: Path, series: dict[str, str], expected: list[dict[str, object]]) -> None:
    """Let promtool look at what alerts ring."""
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    test = {"interval": "1m", "input_series": inputs, "alert_rule_test": expected}
    (folder / "tests.yaml").write_text(yaml.safe_dump({"rule_files": [ALERTS], "tests": [test]}))
    promtool(folder, "test", "rules", "tests.yaml")


@needs_promtool
def test_prometheus_takes_config_and_rules(tmp_path: Path) -> None:
    assert f"{len(RULES)} rules found" in promtool(tmp_path, "check", "rules", ALERTS)
    promtool(tmp_path, "check", "config", SCRAPE)


@needs_promtool
@pytest.mark.parametrize("alert", FAULTS)
def test_an_alert_fires_by_its_fault_and_no_other_does(alert: str, tmp_path: Path) -> None:
    changes, labels, summary = FAULTS[alert]
    series = dict(UNDISTURBED)
    for part, values in changes.items():
        found = [name for name in series if part in name]
        assert found, part
        series |= dict.fromkeys(found, values)
    (severity,) = (rule["labels"]["severity"] for rule in RULES if rule["alert"] == alert)
    rings = {
        "exp_labels": {**labels, "severity": severity},
        "exp_annotations": {"summary": summary, "runbook": f"cluster/RUNBOOK.md: {alert}"},
    }
    expected: list[dict[str, object]] = [
        {"eval_time": "60m", "alertname": name, "exp_alerts": [rings] if name == alert else []} for name in FAULTS
    ]
    require_alerts(tmp_path, series, expected)


@needs_promtool
def test_no_alert_fires_while_jobs_go_on_and_at_their_good_ends(tmp_path: Path) -> None:
    quiet: list[dict[str, object]] = [
        {"eval_time": time, "alertname": alert, "exp_alerts": []} for alert in FAULTS for time in ("5m", "45m", "95m")
    ]
    require_alerts(tmp_path, UNDISTURBED, quiet)
    ends = {"queued": "40-1x40", "running": "2+0x38 1 0", "done": "0+1x38 40 42", "failed": "0+0x40"}
    series = dict(UNDISTURBED)
    for state, values in ends.items():
        series[f'ray_salmonn_extract_units{{{CACHE}, state="{state}"}}'] = f"{values} {GONE}"
    series[f"ray_salmonn_train_step{{{RUN}}}"] = f"4600+10x40 {GONE}"
    series[f"ray_salmonn_train_planned_steps{{{RUN}}}"] = f"5000+0x40 {GONE}"
    series[f"ray_salmonn_answer_pending{{{RUN}}}"] = f"400-10x40 {GONE}"
    require_alerts(tmp_path, series, quiet)


@needs_promtool
def test_an_earlier_jobs_rejects_do_not_ring_in_the_next_one(tmp_path: Path) -> None:
    earlier = CACHE.replace('WorkerId="1"', 'WorkerId="0"')
    series = UNDISTURBED | {
        f'ray_salmonn_extract_rejects_total{{{earlier}, reason="open"}}': "9000+0x100",
        f'ray_salmonn_extract_clips_total{{{earlier}, node="a"}}': "100+0x100",
    }
    require_alerts(tmp_path, series, [{"eval_time": "60m", "alertname": "SalmonnExtractionRejects", "exp_alerts": []}])


def test_every_alert_has_a_fault_in_these_tests_and_a_heading_in_the_runbook() -> None:
    headings = re.findall(r"^### `(\w+)`$", (ROOT / "cluster" / "RUNBOOK.md").read_text(), re.MULTILINE)
    assert {rule["alert"] for rule in RULES} == set(FAULTS)
    for rule in RULES:
        page, _, heading = rule["annotations"]["runbook"].partition(": ")
        assert page == "cluster/RUNBOOK.md" and heading == rule["alert"] and heading in headings


def named_in(text: str) -> set[str]:
    """Return the metrics that queries name, patterns written out."""
    text = re.sub(r"(ray_salmonn_\w+)\((\w+)\|(\w+)\)(\w*)", r"\1\2\4 \1\3\4", text)
    return set(re.findall(r"\bray_\w+", text))


def test_alerts_and_dashboard_name_metrics_that_are_published_and_all_of_them_are_shown() -> None:
    published = {metric.exported for metric in METRICS}
    of_alerts = named_in(" ".join(rule["expr"] for rule in RULES))
    shown = named_in(" ".join(query for panels in PANELS.values() for one in panels for query in one.queries.values()))
    assert of_alerts <= published | OF_RAY and shown <= published | OF_RAY
    assert published <= shown


def test_every_metric_is_told_of_in_the_pages_table_with_its_labels() -> None:
    rows = [line.split("|") for line in (ROOT / "docs" / "operations.md").read_text().splitlines() if line[:3] == "| `"]
    told = {
        name: row[2].strip() for row in rows if len(row) == 5 for name in re.findall(r"`(ray_salmonn_\w+)`", row[1])
    }
    assert told == {metric.exported: ", ".join(metric.labels) for metric in METRICS}


def test_the_dashboard_has_all_panels_beside_and_below_each_other() -> None:
    content = json.loads(FILES[DASHBOARD])
    drawn = [panel for panel in content["panels"] if panel["type"] == "timeseries"]
    assert len(drawn) == sum(map(len, PANELS.values())) > 15
    assert len({panel["id"] for panel in content["panels"]}) == len(content["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in content["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken and max(x for x, _ in cells) < COLUMNS, panel["title"]
        taken |= cells
    names = {one["name"] for one in content["templating"]["list"]}
    asked = set(re.findall(r"\$\{?(\w+)", FILES[DASHBOARD])) - {"__all"}
    assert asked == names


def test_limits_stand_where_they_belong() -> None:
    files = monitoring_files(
        MonitoringSettings(
            discovery="/ray/sd.json", stalled_minutes=7, reject_fraction=0.3, retries=99, disk_fraction=0.5
        )
    )
    (scrape,) = yaml.safe_load(files[SCRAPE])["scrape_configs"]
    assert scrape["file_sd_configs"][0]["files"] == ["/ray/sd.json"]
    rules = {rule["alert"]: rule for rule in yaml.safe_load(files[ALERTS])["groups"][0]["rules"]}
    for alert in ("SalmonnExtractionStalled", "SalmonnTrainingStalled", "SalmonnAnsweringStalled"):
        assert "offset 7m" in rules[alert]["expr"] and "7 minutes" in rules[alert]["annotations"]["summary"]
    assert rules["SalmonnExtractionRejects"]["expr"].strip().endswith("> 0.3")
    assert rules["SalmonnExtractionRetries"]["expr"].endswith("> 99")
    assert rules["SalmonnDiskNearlyFull"]["expr"].count("> 0.5") == 2


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("discovery", "/tmp/ray", "discovery=/tmp/ray: must end in .json"),
        ("stalled_minutes", 0, "stalled_minutes=0: must be 1 or more"),
        ("retries", -1, "retries=-1: must be 0 or more"),
        ("disk_fraction", 90, "disk_fraction=90: must be from 0 to 1"),
    ],
)
def test_a_wrong_value_is_named(key: str, value: object, said: str) -> None:
    with pytest.raises(ClusterError, match=re.escape(said)):
        MonitoringSettings(**{key: value})  # type: ignore[arg-type]
