"""A run to talk to from Python: it hears recordings, waves and cached clips, and answers questions about them."""
