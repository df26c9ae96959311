"""XGBoost through its C interface, without its Python package; here its answering side.

`import xgboost` brings pandas, scikit-learn and SciPy into the process (180 MB, seconds) and its Python layer
costs more for one row than the trees do. A replica needs four calls of the library, which are part of its
documented C interface (https://xgboost.readthedocs.io/en/stable/dev/c__api_8h.html).
"""

import ctypes
import importlib.util
import os
import weakref
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlops_ray.errors import PackageError

#: Predictions of all trees, not margins; a missing value is NaN.
ARGUMENTS = (
    b'{"type": 0, "training": false, "iteration_begin": 0, "iteration_end": 0, "missing": NaN,'
    b' "strict_shape": false, "cache_id": 0}'
)
#: As the name of the shared library is on Linux, macOS and Windows.
LIBRARIES = ("libxgboost.so", "libxgboost.dylib", "xgboost.dll")


class Booster:
    """A booster that answers on one thread: replicas are scaled, not threads within one."""

    def __init__(self, data: bytes) -> None:
        """Reads a model file (.ubj); raises `ValueError` where it is none, `PackageError` without XGBoost."""
        self._handle = ctypes.c_void_p()
        call("XGBoosterCreate", None, ctypes.c_uint64(0), ctypes.byref(self._handle))
        weakref.finalize(self, call, "XGBoosterFree", self._handle)
        call("XGBoosterLoadModelFromBuffer", self._handle, data, ctypes.c_uint64(len(data)))
        call("XGBoosterSetParam", self._handle, b"nthread", b"1")
        found = ctypes.c_uint64()
        call("XGBoosterGetNumFeature", self._handle, ctypes.byref(found))
        self.width = found.value

    def predict(self, matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """One value a row; raises `ValueError` where the matrix is of another width than the model's."""
        rows, width = matrix.shape
        if width != self.width:
            raise ValueError(f"the model reads {self.width} columns, not {width}")
        if not rows:
            return np.zeros(0, np.float32)
        matrix = np.ascontiguousarray(matrix, np.float32)
        shape, values = ctypes.POINTER(ctypes.c_uint64)(), ctypes.POINTER(ctypes.c_float)()
        dimensions = ctypes.c_uint64()
        outputs = (ctypes.byref(shape), ctypes.byref(dimensions), ctypes.byref(values))
        call("XGBoosterPredictFromDense", self._handle, described(matrix), ARGUMENTS, None, *outputs)
        # The library's buffer is overwritten by the next call of this thread.
        return np.ctypeslib.as_array(values, shape=(rows,)).copy()


def call(name: str, *arguments: object) -> None:
    """Calls a function of the library; raises `ValueError` with what it says where it fails."""
    library = _library()
    if getattr(library, name)(*arguments):
        reason = library.XGBGetLastError().decode(errors="replace")
        raise ValueError(reason.strip().splitlines()[0])


def described(array: npt.NDArray[np.float32]) -> bytes:
    """Where a contiguous array lies, as the library reads it; the array must live as long as it is read."""
    return b'{"data": [%d, true], "shape": %s, "strides": null, "typestr": "<f4", "version": 3}' % (
        array.ctypes.data,
        str([*array.shape]).encode(),
    )


def patient_threads() -> None:
    """Makes OpenMP's threads sleep while they wait, unless the environment says otherwise.

    By default they spin: a fit on two threads that shares its two cores with anything else took 33 s in place
    of 5. The library reads this once, so it is called before XGBoost is loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@cache
def _library() -> ctypes.CDLL:
    patient_threads()
    found = importlib.util.find_spec("xgboost")
    folders = [Path(folder) for folder in (found.submodule_search_locations or [])] if found else []
    files = [file for folder in folders for name in LIBRARIES if (file := folder / "lib" / name).exists()]
    if not files:
        raise PackageError("this model needs XGBoost, which is not installed: pip install xgboost")
    library = ctypes.CDLL(str(files[0]))
    library.XGBGetLastError.restype = ctypes.c_char_p
    return library
