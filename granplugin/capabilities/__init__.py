"""What each engine has, as data, and what it promises for a plan before anything is built."""

from granplugin.capabilities.listing import Line, listing
from granplugin.capabilities.promise import (
    KINDS,
    Book,
    Promise,
    cell_promise,
    plan_promises,
    promises,
)
from granplugin.capabilities.table import LOWERINGS, Cell, Table, backends, load_table

__all__ = [
    "KINDS",
    "LOWERINGS",
    "Book",
    "Cell",
    "Line",
    "Promise",
    "Table",
    "backends",
    "cell_promise",
    "listing",
    "load_table",
    "plan_promises",
    "promises",
]
