"""Studies over a run's answers: over LoRA's scaling, over its checkpoints as it trains, and stories for stage 3."""
