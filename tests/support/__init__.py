"""Builders of small checkpoints, models and scores, and slow references that the tests compare with."""
