"""The whole path on a corpus that is made on the spot: spoken phrases and synthetic sounds."""
