"""XGBoost's fitting side through its C interface: see registry/booster.py.

Without its Python package a worker of a sweep starts a second sooner; the model is the same to the byte.
"""

import contextlib
import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlops_ray.registry.booster import call, described
from mlops_ray.registry.encoder import Matrix
from mlops_ray.registry.models import Values

#: What the library asks for rows with: to go to the next ones (1 where there were some), to begin again.
NEXT, RESET = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p), ctypes.CFUNCTYPE(None, ctypes.c_void_p)
#: The library's own, where a project file says nothing.
MAX_BIN = 256


def fit(x: Matrix, y: Values, weights: Values | None, params: Mapping[str, Any], rounds: int) -> bytes:
    """The file (.ubj) of a booster of so many rounds; `params` by the library's names, `nthread` among them.

    Raises `ValueError` where the library refuses them.
    """
    with contextlib.ExitStack() as owned:
        matrix, booster = _cut_into_bins(x, y, weights, params), ctypes.c_void_p()
        owned.callback(call, "XGDMatrixFree", matrix)
        call("XGBoosterCreate", (ctypes.c_void_p * 1)(matrix), ctypes.c_uint64(1), ctypes.byref(booster))
        owned.callback(call, "XGBoosterFree", booster)
        for name, value in params.items():
            call("XGBoosterSetParam", booster, name.encode(), str(value).encode())
        for round in range(rounds):
            call("XGBoosterUpdateOneIter", booster, ctypes.c_int(round), matrix)
        length, data = ctypes.c_uint64(), ctypes.POINTER(ctypes.c_char)()
        outputs = (ctypes.byref(length), ctypes.byref(data))
        call("XGBoosterSaveModelToBuffer", booster, b'{"format": "ubj"}', *outputs)
        return ctypes.string_at(data, length.value)


def _cut_into_bins(
    x: Matrix, y: Values, weights: Values | None, params: Mapping[str, Any]
) -> ctypes.c_void_p:
    """A matrix in which a byte stands for a value's bin; rows are read twice and not copied."""
    given = {"label": y} if weights is None else {"label": y, "weight": weights}
    arrays = {name: np.ascontiguousarray(values, np.float32) for name, values in given.items()}
    rows, proxy, left = np.ascontiguousarray(x, np.float32), ctypes.c_void_p(), [1]

    def go_on(_: object) -> int:
        if not left:
            return 0
        left.clear()
        call("XGProxyDMatrixSetDataDense", proxy, described(rows))
        for name, values in arrays.items():
            call("XGDMatrixSetInfoFromInterface", proxy, name.encode(), described(values))
        return 1

    config = b'{"missing": NaN, "nthread": %d, "max_bin": %d}'
    asked = config % (params["nthread"], params.get("max_bin", MAX_BIN))
    # They must live as long as they may be called.
    reset, following = RESET(lambda _: left.append(1)), NEXT(go_on)
    made = ctypes.c_void_p()
    call("XGProxyDMatrixCreate", ctypes.byref(proxy))
    try:
        output = ctypes.byref(made)
        call("XGQuantileDMatrixCreateFromCallback", None, proxy, None, reset, following, asked, output)
        return made
    finally:
        call("XGDMatrixFree", proxy)
