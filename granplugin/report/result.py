"""What a function of `import granplugin` returns: a value that prints as its verb does."""

from __future__ import annotations

from abc import abstractmethod

from granplugin.report.show import as_html, as_text
from granplugin.results.parts import Part


class Result:
    """A frozen value: `str`, and a Python prompt, give the lines that its verb prints, and a notebook
    shows the same as HTML tables."""

    __slots__ = ()

    @abstractmethod
    def output(self) -> Part:
        """What its verb prints with --json, as `granplugin schema` documents it."""

    def __str__(self) -> str:
        return as_text(self.output())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return as_html(self.output())
