"""Files that start a cluster, rendered from one set of values: Kubernetes, Slurm, `ray up`, an image.

`values` has the keys, `render` fills the templates of `cluster/templates`. Nothing here talks to a cluster.
"""
