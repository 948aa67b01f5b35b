"""BEATs: waves in, 768 values every 20 ms out, as long as the clip."""
