"""Ray without audio: joining a cluster, giving out units of work, and what becomes of them when machines die."""

import os

# Otherwise whatever still runs when a job has left its cluster starts a second one by its next call of Ray. Ray reads
# this when it is first imported, which is after this.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
