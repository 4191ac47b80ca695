"""What each engine has, as data, and what it promises for a plan before anything is built."""

from granplugin.capabilities.listing import Line, listing
from granplugin.capabilities.promise import (
    KINDS,
    Book,
    Promise,
    cell_promise,
)
from granplugin.capabilities.table import Cell, Table, backends, load_table

__all__ = [
    "KINDS",
    "Book",
    "Cell",
    "Line",
    "Promise",
    "Table",
    "backends",
    "cell_promise",
    "listing",
    "load_table",
]
