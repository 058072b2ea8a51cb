"""Plugins for other programs. Each is imported by its program, and imports it."""
