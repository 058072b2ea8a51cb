"""Adapters for PEFT that hold the rows of the chosen heads."""
