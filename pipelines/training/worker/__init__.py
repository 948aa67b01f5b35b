"""What runs in each training worker: its share of every batch, one sum over the workers, one step."""
