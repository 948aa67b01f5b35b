"""Answers beside references: which scores a task has, and the scores."""
