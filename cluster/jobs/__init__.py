"""Jobs on a cluster from elsewhere, over its job server: what is shipped, checked, started once and followed.

`server` speaks with the job server, `shipped` measures what is sent, `preflight` looks at every node by a job of its
own, `submission` starts a job under a stable name, and `follow` stays with it until its end.
"""
