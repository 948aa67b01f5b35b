"""What a run takes before it runs: lengths, bytes, memory, hours."""
