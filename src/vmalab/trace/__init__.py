"""Traces: the records, the file that holds them, and replay."""
