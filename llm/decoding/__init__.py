"""Answers of an LLM, searched token by token over many examples at once."""
