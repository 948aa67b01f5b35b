"""How jobs stand, by what they leave in caches and runs: no cluster is asked, and nothing is changed."""
