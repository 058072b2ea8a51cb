"""The comparisons by their names."""

from collections.abc import Callable, Iterator

from compare import disk, resources, scaling, speed
from compare.bench import Bench
from compare.result import Result

ROWS: dict[str, Callable[[Bench], Iterator[Result]]] = {
    "read": speed.read,
    "instructions": speed.instructions,
    "formats": speed.formats,
    "published": speed.as_published,
    "torch": speed.torch_implementation,
    "product": speed.matrix_products,
    "disk": disk.disk,
    "memory": resources.memory,
    "import": resources.imports,
    "threads": scaling.threads,
    "layers": scaling.layers,
    "experts": scaling.experts,
}
"""Each measures, and yields the rows of the table one by one."""
