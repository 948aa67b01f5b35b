"""Examples and cached features joined to batches, in an order that depends on the seed alone.

Position p of a training run is example `order(epoch)[p % n]` of epoch `p // n`, where n is what an epoch holds: every
example once, or what a mix draws. Global batch s holds positions s·B … (s+1)·B-1. Nothing else is needed to know which
example comes next, on any number of workers. Its examples are dealt to micro-batches by their texts' lengths, so that
all workers are done at the same time.
"""
