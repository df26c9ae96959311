"""Arrays as a model's file: NumPy's own format (.npy), one array after the other.

`numpy.load` would also take a zip file, whose parts may be compressed.
"""

import io
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def pack(*arrays: Array) -> bytes:
    """The arrays as bytes, from which `unpack` makes them again."""
    file = io.BytesIO()
    for array in arrays:
        np.lib.format.write_array(file, array, allow_pickle=False)
    return file.getvalue()


def require_width(matrix: Array, width: int) -> None:
    """Raises `ValueError` where a matrix is of another width: NumPy would repeat a single column."""
    if matrix.shape[1] != width:
        raise ValueError(f"the model reads {width} columns, not {matrix.shape[1]}")


def unpack(data: bytes) -> list[Array]:
    """The arrays; raises `ValueError` where the bytes are not what `pack` makes.

    >>> [array.tolist() for array in unpack(pack(np.arange(3), np.ones((1, 2))))]
    [[0, 1, 2], [[1.0, 1.0]]]
    """
    file, found = io.BytesIO(data), []
    while file.tell() < len(data):
        found.append(np.lib.format.read_array(file, allow_pickle=False))
    return found
