"""What needs a model in memory, but no training: its heads, grafts that are undone, measures with data, audits."""

from alps.live.audit import audit
from alps.live.grafting import grafted

__all__ = ["audit", "grafted"]
