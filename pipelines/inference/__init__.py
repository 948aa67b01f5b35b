"""A run and a question in, answers out: one recording (`ask`) or the held-out examples of a manifest (`evaluate`)."""
