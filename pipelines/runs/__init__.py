"""Run folders: what one holds, its checkpoints and metrics, and the models that are built from them.

Training writes them; evaluation, `ask` and the next stage read them. `official` converts checkpoints of the official
code.
"""
