"""Engines that decode answers in place of our own."""
