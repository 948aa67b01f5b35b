"""The job that turns a manifest into a feature cache: every clip once through the frozen encoders, on every GPU.

`extract` drives; `actor` is what Ray starts on a machine, `worker` encodes one unit there and writes its shard.
"""
