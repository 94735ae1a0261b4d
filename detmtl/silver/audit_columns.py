"""The tables of an audit as columns of plain values for JSON, and back."""

from collections.abc import Mapping

import numpy as np

from detmtl.silver.comparison import SHIFTED
from detmtl.silver.record import SCORE_DIGITS

DIGITS = {"score": SCORE_DIGITS, "box": 2, "shift": 4}
"""Decimals that are written; the tables hold no more, so that reading gives the same."""


def columns_of(rows: np.ndarray) -> dict[str, list]:
    """Returns a table (N,) as flat lists by column: four numbers a row for boxes and shifts, and shifts
    only of the rows that have one."""
    columns = {}
    for name in rows.dtype.names or ():
        column = rows[name]
        if name == "shift":
            column = column[~np.isnan(column[:, 0])]
        if name in DIGITS:
            column = np.round(column.astype(np.float64), DIGITS[name])
        columns[name] = column.ravel().tolist()
    return columns


def rows_of(columns: Mapping[str, list], kind: np.dtype) -> np.ndarray:
    """Returns the table, of type `kind`, that `columns_of` wrote."""
    rows = np.zeros(len(columns["class"]), dtype=kind)
    for name in kind.names or ():
        values = np.array(columns[name], dtype=kind[name].base)
        if name == "shift":
            rows[name] = np.nan
            rows[name][np.isin(rows["fault"], SHIFTED)] = values.reshape(-1, 4)
        else:
            rows[name] = values.reshape(rows[name].shape)
    return rows
