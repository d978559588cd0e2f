"""Tests of the core that anyone can run: scenes as text, ports that record and fail, a naive model."""
