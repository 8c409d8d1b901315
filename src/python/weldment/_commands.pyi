# Written by tests/python/stubs.py from the options of the commands.
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from os import PathLike
from typing import Any, TypeAlias

from ._results import Plan, Report, StudyReport, Written

Path: TypeAlias = str | PathLike[str]
Recipe: TypeAlias = Path | Mapping[str, Any]
Value: TypeAlias = str | int | PathLike[str]
Progress: TypeAlias = Callable[[str, int, int], object]

def recipe_in_a_file(recipe: Any) -> AbstractContextManager[Any]: ...
def words(command: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> list[str]: ...

def plan(
    recipe: Recipe,
    *,
    set: Value | Sequence[Value] | Mapping[str, Path] | None = None,
    shard_size: Value | None = None,
    tokenizer_from: Value | None = None,
    seed: Value | None = None,
    threads: Value | None = None,
    memory: Value | None = None,
    allow_nonfinite: bool = False,
    saturate: bool = False,
    offline: bool = False,
    inexact: bool = False,
    fused: bool = False,
    scratch_limit: Value | None = None,
) -> Plan: ...

def merge(
    recipe: Recipe,
    out: Path,
    *,
    progress: Progress | None = None,
    set: Value | Sequence[Value] | Mapping[str, Path] | None = None,
    shard_size: Value | None = None,
    tokenizer_from: Value | None = None,
    seed: Value | None = None,
    threads: Value | None = None,
    memory: Value | None = None,
    allow_nonfinite: bool = False,
    saturate: bool = False,
    offline: bool = False,
    force: bool = False,
    hash_inputs: bool = False,
    no_check: bool = False,
    part: Value | None = None,
    resume: bool = False,
    gguf: Value | None = None,
    gguf_type: Value | None = None,
    pre_tokenizer: Value | None = None,
    scratch_limit: Value | None = None,
) -> Written: ...

def moe(
    recipe: Recipe,
    out: Path,
    *,
    progress: Progress | None = None,
    set: Value | Sequence[Value] | Mapping[str, Path] | None = None,
    shard_size: Value | None = None,
    tokenizer_from: Value | None = None,
    seed: Value | None = None,
    threads: Value | None = None,
    memory: Value | None = None,
    allow_nonfinite: bool = False,
    saturate: bool = False,
    offline: bool = False,
    force: bool = False,
    hash_inputs: bool = False,
    no_check: bool = False,
    part: Value | None = None,
    resume: bool = False,
    gguf: Value | None = None,
    gguf_type: Value | None = None,
    pre_tokenizer: Value | None = None,
    inexact: bool = False,
    fused: bool = False,
    check: bool = False,
) -> Written: ...

def extract_lora(
    base: Path,
    finetune: Path,
    out: Path,
    *,
    progress: Progress | None = None,
    rank: Value | None = None,
    energy: Value | None = None,
    max_rank: Value | None = None,
    module: Value | Sequence[Value] | Mapping[str, Path] | None = None,
    exclude: Value | Sequence[Value] | Mapping[str, Path] | None = None,
    save: Value | Sequence[Value] | Mapping[str, Path] | None = None,
    dtype: Value | None = None,
    force: bool = False,
    hash_inputs: bool = False,
    threads: Value | None = None,
    offline: bool = False,
) -> Written: ...

def join(
    out: Path,
    *,
    progress: Progress | None = None,
    force: bool = False,
    no_check: bool = False,
) -> Written: ...

def check(
    model: Path,
    *,
    progress: Progress | None = None,
    mutate: bool = False,
    for_: Value | Sequence[Value] | Mapping[str, Path] | None = None,
    offline: bool = False,
    threads: Value | None = None,
    policy: Value | None = None,
    strict: bool = False,
) -> Report: ...

def diff(
    a: Path,
    b: Path,
    *,
    progress: Progress | None = None,
    base: Value | None = None,
    offline: bool = False,
    threads: Value | None = None,
    policy: Value | None = None,
    strict: bool = False,
) -> Report: ...

def analyse(
    models: Path | Sequence[Path],
    *,
    progress: Progress | None = None,
    base: Value | None = None,
    subspaces: Value | None = None,
    offline: bool = False,
    threads: Value | None = None,
    policy: Value | None = None,
    strict: bool = False,
) -> Report: ...

def stats(
    model: Path,
    *,
    data: Value | Sequence[Value] | Mapping[str, Path] | None = None,
    out: Value | None = None,
    keep: Value | Sequence[Value] | Mapping[str, Path] | None = None,
    split: Value | None = None,
    seed: Value | None = None,
    limit: Value | None = None,
    force: bool = False,
    offline: bool = False,
    threads: Value | None = None,
    memory: Value | None = None,
) -> Written: ...

def eval(
    model: Recipe,
    *,
    progress: Progress | None = None,
    tasks: Value | Sequence[Value] | Mapping[str, Path] | None = None,
    command: Value | None = None,
    metric: Value | Sequence[Value] | Mapping[str, Path] | None = None,
    metric_error: Value | Sequence[Value] | Mapping[str, Path] | None = None,
    lower_is_better: Value | Sequence[Value] | Mapping[str, Path] | None = None,
    time_limit: Value | None = None,
    retries: Value | None = None,
    scratch: Value | None = None,
    split: Value | None = None,
    seed: Value | None = None,
    limit: Value | None = None,
    chat_template: bool = False,
    generate: bool = False,
    max_tokens: Value | None = None,
    items: Value | None = None,
    baseline: Value | None = None,
    max_drop: Value | None = None,
    compare_by: Value | None = None,
    set: Value | Sequence[Value] | Mapping[str, Path] | None = None,
    merge_seed: Value | None = None,
    offline: bool = False,
    threads: Value | None = None,
    memory: Value | None = None,
    policy: Value | None = None,
    strict: bool = False,
) -> Report: ...

def verify(
    model: Path,
    *,
    progress: Progress | None = None,
    recipe: Value | None = None,
    set: Value | Sequence[Value] | Mapping[str, Path] | None = None,
    inputs: Value | Sequence[Value] | Mapping[str, Path] | None = None,
    ignore: Value | Sequence[Value] | Mapping[str, Path] | None = None,
    seed: Value | None = None,
    offline: bool = False,
    threads: Value | None = None,
    memory: Value | None = None,
    policy: Value | None = None,
    strict: bool = False,
    signature: Value | None = None,
    attestation: Value | None = None,
    key: Value | None = None,
    recompute: bool = False,
    full: bool = False,
    samples: Value | None = None,
    sample_seed: Value | None = None,
    allow: Value | None = None,
    numerics: Value | None = None,
) -> Report: ...

def study(
    study: Recipe,
    dir: Path,
    *,
    progress: Progress | None = None,
    run_commands: bool = False,
    threads: Value | None = None,
    memory: Value | None = None,
    offline: bool = False,
) -> StudyReport: ...

def study_report(
    dir: Path,
) -> StudyReport: ...

def study_best(
    dir: Path,
    out: Path,
    *,
    progress: Progress | None = None,
    force: bool = False,
    hash_inputs: bool = False,
    no_check: bool = False,
    part: Value | None = None,
    resume: bool = False,
    gguf: Value | None = None,
    gguf_type: Value | None = None,
    pre_tokenizer: Value | None = None,
    search: Value | None = None,
    number: Value | None = None,
    threads: Value | None = None,
    memory: Value | None = None,
    offline: bool = False,
) -> Written: ...
