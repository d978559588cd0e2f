"""Answers: why neighbours did not merge, and what happened to an address."""
