"""Checks what alps reads of a model against what the model computes when transformers runs it."""
