"""Recordings: where one is, how it is opened and checked, and the clip that is made of it."""
