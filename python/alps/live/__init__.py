"""What needs a model in memory, but no training: grafts that are undone, audits, measures with data."""

from alps.live.auditing import audit
from alps.live.grafting import grafted
from alps.live.measuring import measure

__all__ = ["audit", "grafted", "measure"]
