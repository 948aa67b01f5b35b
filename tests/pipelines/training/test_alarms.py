import math
import random

import pytest

from pipelines.training.alarms import AlarmConfig, Alarms

TASKS = ["asr", "audiocaption"]


def rings(losses, *, waits=None, tasks=None, config=None, every=10):
    """Return (line, alarm's name) of everything that rings on a curve; a line every ten steps."""
    alarms = Alarms(config or AlarmConfig(), TASKS)
    found = []
    for number, loss in enumerate(losses):
        seen = tasks(number) if tasks else TASKS
        line = {"step": every * (number + 1), "loss": loss, "examples_by_task": dict.fromkeys(seen, 4)}
        line["data_wait_fraction"] = waits[number] if waits else 0.0
        found += [(number, alarm.partition(":")[0]) for alarm in alarms.look(line)]
    return found


def learning(lines, noise=0.1, seed=0):
    """A curve that falls from 4 towards 1 with noise."""
    draw = random.Random(seed)
    return [1 + 3 * math.exp(-number / (0.4 * lines)) + draw.gauss(0, noise) for number in range(lines)]


@pytest.mark.parametrize("seed", range(20))
def test_a_run_that_learns_rings_nothing(seed):
    assert rings(learning(600, seed=seed)) == []


def test_a_spike_rings_at_its_line_and_once():
    losses = learning(300)
    losses[200:203] = [9.0, 9.5, 9.2]
    assert rings(losses) == [(200, "spike")]
    losses[240] = 9.0
    assert rings(losses) == [(200, "spike"), (240, "spike")]


def test_losses_that_climb_ring_as_divergence_once():
    losses = learning(300) + [1.2 + 0.02 * number for number in range(100)]
    found = [name for _, name in rings(losses)]
    assert found.count("divergence") == 1


@pytest.mark.parametrize("seed", range(5))
def test_a_flat_curve_is_a_plateau_and_a_falling_one_in_the_same_noise_is_not(seed):
    draw = random.Random(seed)
    flat = [2 + draw.gauss(0, 0.1) for _ in range(400)]
    assert "plateau" in {name for _, name in rings(flat)}
    falling = [loss - 0.001 * number for number, loss in enumerate(flat)]
    assert rings(falling) == []


def test_a_task_without_examples_is_starved_until_it_has_one():
    found = rings(learning(400), tasks=lambda number: TASKS if number in (0, 300) else TASKS[:1])
    assert found == [(100, "starvation of audiocaption")]
    found = rings(learning(500), tasks=lambda number: TASKS if number in (0, 300) else TASKS[:1])
    assert found == [(100, "starvation of audiocaption"), (400, "starvation of audiocaption")]


def test_waiting_for_data_rings_when_it_lasts_and_not_for_one_slow_read():
    losses = learning(100)
    assert rings(losses, waits=[0.9, *[0.01] * 49, 0.9, *[0.01] * 49]) == []
    assert rings(losses, waits=[0.01] * 50 + [0.3] * 50) == [(52, "data wait")]


def test_lines_without_a_finite_loss_are_passed_over():
    losses = learning(300)
    losses[100:150] = [math.nan] * 50
    assert rings(losses) == []


def test_alarms_that_are_off_do_not_ring():
    off = AlarmConfig(spike_sigmas=0, divergence_fraction=0, plateau_windows=0, starved_steps=0, data_wait_fraction=0)
    losses = [2.0] * 200 + [9.0] * 200
    assert rings(losses, waits=[1.0] * 400, tasks=lambda number: [], config=off) == []
