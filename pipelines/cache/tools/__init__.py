"""Verbs that look after a cache: what it holds, whether it is whole, copies, and what may go."""
