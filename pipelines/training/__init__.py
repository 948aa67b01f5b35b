"""The job that turns a cache into a run: Q-Former, two LayerNorms, projection and LoRA learn, all else is frozen.

`train` drives and `worker/` computes; `forecast/` says beforehand what a run takes, `monitoring/` how it goes, and
`sweep/` trains many variants.
"""
