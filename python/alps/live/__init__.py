"""What needs a model in memory, but no training: grafts that are undone, and audits."""

from alps.live.auditing import audit
from alps.live.grafting import grafted

__all__ = ["audit", "grafted"]
