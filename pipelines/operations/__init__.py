"""Looking after jobs that run elsewhere: verbs become jobs of a cluster, and values become what starts a cluster.

`submit` and `jobs` speak with a cluster's job server, `deploy` writes files, `top` reads what jobs leave in theirs.
What they need of Ray is in `cluster/`.
"""
