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
LARGEST_DOCUMENT = 8 * 2**20
"""Bytes of a JSON document: of a head set, or of the metadata of scores and parts."""
LARGEST_VALUES = 32 * 2**20
"""Bytes that the values of a document take as objects, by an estimate: more than those of every table of `MOST_CELLS`."""
