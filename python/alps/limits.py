"""The limits of what alps reads and computes. Larger models do not exist; larger files are damaged or hostile.

`rust/attention/find.rs` has the same limits for checkpoints.
"""

MOST_LAYERS = 4096
"""Layers with attention."""
MOST_HEADS = 16_384
"""Query heads of one layer."""
MOST_CELLS = 2**19
"""Cells of a table of scores: layers times the most heads of a layer."""
MOST_THREADS = 4096
"""Threads of a scan."""
LONGEST_NAME = 200
"""Characters of the name of a model type or a layout."""
LONGEST_LAYER = 9
"""Digits of the number of a layer."""
LARGEST_HEAD_SET = 64 * 2**20
"""Bytes of a file with a head set."""
