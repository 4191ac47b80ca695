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
docs/errors.md has what each class says of its cause and its cure, and its messages.
"""

from __future__ import annotations


class UserError(Exception):
    """Something the user must change; `str(error)` is the whole message.

    Cause: an option, an argument or a file that the verb cannot take.
    Cure: what stands behind the last semicolon of the message; `granplugin VERB --help`.
    """


class RecipeError(UserError):
    """A recipe that cannot be honoured; the message starts with file:line:column.

    Cause: the text is not YAML, has a key or word that there is not, or asks of a layer what it
        cannot have, or an engine cannot do.
    Cure: change the line that the message names; `granplugin check` finds most of these without
        torch, `granplugin plan` the rest before anything is calibrated.
    """


class ModelError(UserError):
    """A model that cannot be built, loaded, traced or exported.

    Cause: the callable fails, the weights are another model's, a forward pass does not repeat or
        gives NaN, or torch cannot export it.
    Cure: `granplugin inspect RECIPE` meets the same in seconds, and names module and line; run the
        model on one batch in a script of your own first.
    """


class DataError(UserError):
    """Data that is missing, malformed, or not what the model takes.

    Cause: a file or array that is not there, another shape, type or layout than forward wants, or
        too few values for what is asked of them.
    Cure: the message says what forward wants and what it got; docs/data.md has the contracts.
    """


class RunError(UserError):
    """A run folder that cannot be used.

    Cause: it is not writable, another run is using it, or what is in it is of another version.
    Cure: give --out another folder, wait for the other run, or apply the recipe again.
    """


class EngineError(UserError):
    """An engine that is not installed, or that refused what it was given.

    Cause: its library is missing or another version, or it does not build the file.
    Cure: `granplugin doctor` says what is missing; `granplugin audit FILE` says everything in the
        way of a file at once; where one layer is named, `format: float` for it.
    """


class LackError(EngineError, RunError):
    """What the machine lacks - room, memory, rights - while an engine is made or runs: no fault of
    the graph, so no layer is looked for.

    Cause: a full disk, a limit of memory or of file sizes, no right to write.
    Cure: make room (`granplugin runs` and `granplugin clean` free caches) or lift the limit; the
        next run goes on from there.
    """


class Unhonoured(Exception):
    """A written graph, read back, that is not what the plan asked for.

    Cause: the network computes something around a quantized tensor that our writer or the exporter
        takes for something else; nothing that was written is used.
    Cure: leave the layer that is named float (`format: float`), and report it: the plan promised it.
    """
