"""What commands made: the fields of their JSON, as items and as attributes."""

from __future__ import annotations

import html
import json
from typing import Any

from ._weldment import Answer


class Fields(dict):
    """A dictionary whose items are attributes too.

    >>> fields = Fields(verdict="passed")
    >>> fields.verdict == fields["verdict"]
    True
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no field {name!r}") from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(key for key in self if key.isidentifier())]

    @staticmethod
    def of_json(text: str) -> Any:
        """JSON whose objects are fields."""
        return json.loads(text, object_hook=Fields)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries and lists."""
        return json.loads(json.dumps(self))


class _Result(Fields):
    """The fields of an answer, and the answer in other formats."""

    __slots__ = ("_answer",)

    def __init__(self, answer: Answer) -> None:
        super().__init__(self.of_json(answer.json()))
        self._answer = answer

    def __reduce__(self) -> Any:
        # What is sent to another process are the fields.
        return (Fields, (dict(self),))


def _frame(page: str) -> str:
    """A page within a notebook's, so that neither's style reaches the other."""
    page = html.escape(page, quote=True)
    return f'<iframe srcdoc="{page}" style="width:100%;height:480px;border:0"></iframe>'


class Plan(_Result):
    """What a recipe would do: every tensor with its sources and values."""

    __slots__ = ()

    def to_text(self) -> str:
        """The plan as ``weld plan`` prints it."""
        return self._answer.written("text")

    def to_html(self) -> str:
        """The plan as a page: layers by model, values, cost."""
        return self._answer.written("html")

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        return f"<Plan: {len(self['tensors'])} tensors by {self['method']}>"

    def _repr_html_(self) -> str:
        return _frame(self.to_html())


class Written(_Result):
    """What was written, and how long it took."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<Written: {self['tensors']} tensors to {self['out']}>"


class _Formats(_Result):
    """A report in the formats of ``--format``."""

    __slots__ = ()

    def to(self, format: str) -> str:
        """The report in a format of ``--format``; a wrong one is a ``ValueError`` that lists them."""
        return self._answer.written(format)

    def to_text(self) -> str:
        """The report as the command prints it."""
        return self.to("text")

    def to_html(self) -> str:
        """The report as a page."""
        return self.to("html")

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        return _frame(self.to_html())


class Report(_Formats):
    """What was found out about a checkpoint."""

    __slots__ = ()

    @property
    def passed(self) -> bool:
        """Whether the verdict is ``passed``: the exit code would be 0."""
        return self["verdict"] == "passed"

    def __repr__(self) -> str:
        return f"<Report of {self['command']}: {self['verdict']}, {len(self['findings'])} findings>"


class StudyReport(_Formats):
    """What a study found: the leaderboard, the models that were merged, searches, scores by task."""

    __slots__ = ()

    def __repr__(self) -> str:
        complete = sum(search["complete"] for search in self["searches"])
        best = [row["validation"]["value"] for row in self["leaderboard"][:1]]
        return f"<StudyReport: {complete} trials scored" + "".join(f", best {one:.4f}" for one in best) + ">"
