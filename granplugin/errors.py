"""What can go wrong, as a tree; every message is one sentence: where, what, and the way out.

    UserError            the user must change something                    exit code 2
      RecipeError        the recipe's text; carries file:line:column
      ModelError         the model, its weights or its outputs
      DataError          calibration or evaluation data
      RunError           the run folder: not writable, or in use
      EngineError        a backend that is not installed, or refused a graph
        LackError        the machine lacks room, memory or the like for it (a RunError, too)
    Unhonoured           the file does not say what the plan says           exit code 3

Anything else that escapes is our own fault: exit code 70, and the log file has the traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """Something the user must change; `str(error)` is the whole message."""


class RecipeError(UserError):
    """A recipe that cannot be honoured; the message starts with file:line:column."""


class ModelError(UserError):
    """A model that cannot be built, loaded, traced or exported."""


class DataError(UserError):
    """Data that is missing, malformed, or not what the model takes."""


class RunError(UserError):
    """A run folder that cannot be used."""


class EngineError(UserError):
    """An engine that is not installed, or that refused what it was given."""


class LackError(EngineError, RunError):
    """What the machine lacks - room, memory, rights - while an engine is made or runs: no fault of
    the graph, so no layer is looked for."""


class Unhonoured(Exception):
    """A written graph, read back, that is not what the plan asked for."""
