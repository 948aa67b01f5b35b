"""A reader per corpus: its files on disk in, examples of a manifest out."""
