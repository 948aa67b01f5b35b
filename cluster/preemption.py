"""Notice of machines that are about to go."""

from ray.train.v2._internal.execution.context import get_train_context


def preemption_announced() -> bool:
    """Tell a Ray Train worker whether Ray has announced the end of a machine that its workers run on.

    `ray.train.get_preemption_info`, which is public, waits for all workers at every call; this reads what it would
    send around.
    """
    return get_train_context().preemption_context.preemption_info is not None
