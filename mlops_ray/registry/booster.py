"""XGBoost through its C interface, without its Python package; here its answering side.

`import xgboost` brings pandas, scikit-learn and SciPy into the process (180 MB, seconds) and its Python layer
costs more for one row than the trees do. A replica needs few calls of the library, which are part of its
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
from mlops_ray.registry.arrays import require_width

#: Of all trees; a missing value is NaN.
ARGUMENTS = (
    b'{"type": %d, "training": false, "iteration_begin": 0, "iteration_end": 0, "missing": NaN,'
    b' "strict_shape": false, "cache_id": 0}'
)
#: Types: predictions, not margins; what each column contributes to the margin, exactly.
PREDICTIONS, CONTRIBUTIONS = 0, 2
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
        require_width(matrix, self.width)
        if not len(matrix):
            return np.zeros(0, np.float32)
        matrix = np.ascontiguousarray(matrix, np.float32)
        asked = (described(matrix), ARGUMENTS % PREDICTIONS, None)
        return self._asked("XGBoosterPredictFromDense", asked, (len(matrix),))

    def contributions(self, matrix: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float64], float]:
        """What each column adds to a row's margin (rows × columns), and to what: the mean margin.

        Raises `ValueError` as `predict` does, or where the file does not say how many rows its nodes count.
        """
        require_width(matrix, self.width)
        # The mean comes with rows only.
        given = matrix if len(matrix) else np.zeros((1, self.width))
        given, rows = np.ascontiguousarray(given, np.float32), ctypes.c_void_p()
        call(
            "XGDMatrixCreateFromDense",
            described(given),
            b'{"missing": NaN, "nthread": 1}',
            ctypes.byref(rows),
        )
        try:
            shape = (len(given), self.width + 1)
            found = self._asked("XGBoosterPredictFromDMatrix", (rows, ARGUMENTS % CONTRIBUTIONS), shape)
        finally:
            call("XGDMatrixFree", rows)
        if not np.isfinite(found).all():
            raise ValueError("the model's file does not say how many rows its nodes count")
        return found[: len(matrix), :-1].astype(np.float64), float(found[0, -1])

    def _asked(
        self, function: str, arguments: tuple[object, ...], shape: tuple[int, ...]
    ) -> npt.NDArray[np.float32]:
        lengths, values = ctypes.POINTER(ctypes.c_uint64)(), ctypes.POINTER(ctypes.c_float)()
        outputs = (ctypes.byref(lengths), ctypes.byref(ctypes.c_uint64()), ctypes.byref(values))
        call(function, self._handle, *arguments, *outputs)
        # The library's buffer is overwritten by the next call of this thread.
        return np.ctypeslib.as_array(values, shape=shape).copy()


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
