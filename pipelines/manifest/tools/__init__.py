"""Verbs that look at a manifest and change nothing."""
