"""Checkpoints that are not on this machine: on the hub, in object stores, on web servers."""
