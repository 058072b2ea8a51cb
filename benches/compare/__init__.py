"""Compares the time and memory of a scan with those of other programs that read the same weights."""
