"""Merge model checkpoints, assemble mixtures of experts, and check, compare and verify checkpoints.

Each function is a command of ``weld``, with the command's options by their names (``--shard-size`` is
``shard_size``, ``--for`` is ``for_``), and returns what the command prints with ``--format json``:

>>> import weldment
>>> plan = weldment.plan("recipe.yml")
>>> plan.method
'linear'
>>> made = weldment.merge("recipe.yml", "merged")
>>> made.tensors == len(plan.tensors)
True
>>> weldment.verify("merged", full=True).passed
True

Tensors in memory are merged by :func:`merge_state_dicts` and :func:`merge_tensors`, and those of a model are read by
:func:`open`. What goes wrong is an :class:`Error` that knows its file, tensor, model and line.
"""

from ._commands import (
    analyse,
    check,
    diff,
    eval,
    extract_lora,
    join,
    merge,
    moe,
    plan,
    stats,
    study,
    study_best,
    study_report,
    verify,
)
from ._error import Error
from ._models import Model, merge_state_dicts, merge_tensors, open
from ._results import Fields, Plan, Report, StudyReport, Written
from ._weldment import version as _version

__all__ = [
    "Error",
    "Fields",
    "Model",
    "Plan",
    "Report",
    "StudyReport",
    "Written",
    "analyse",
    "check",
    "diff",
    "eval",
    "extract_lora",
    "join",
    "merge",
    "merge_state_dicts",
    "merge_tensors",
    "moe",
    "open",
    "plan",
    "stats",
    "study",
    "study_best",
    "study_report",
    "verify",
]
__version__ = _version()
