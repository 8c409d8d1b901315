"""Sums the comparison up as tables by family and by method, for docs/from-mergekit.md."""

import re
from dataclasses import dataclass

START, END = "<!-- tests/peer: from here", "<!-- tests/peer: to here -->"


@dataclass
class Row:
    """One merge that was compared."""

    family: str
    method: str
    verdict: str
    note: str

    @property
    def kind(self):
        kind = self.verdict.split(":")[0]
        return "within" if kind.startswith("within 4") else kind

    @property
    def agreement(self):
        """How far weld is from the peer's arithmetic, whatever the peer's table does."""
        aside = re.search(r"peer with its table set aside: ([^;]*)", self.note)
        verdict = aside[1] if aside else "not compared" if self.kind.startswith("peer") else self.verdict
        kind = verdict.split(":")[0]
        return "within" if kind.startswith("within 4") else kind

    @property
    def share(self):
        """The share of equal elements, in percent, where it is not all of them."""
        found = re.search(r"within a step: ([\d.]+) %", f"{self.verdict}; {self.note}")
        return float(found[1]) if found else 100.0


def counted(rows, what):
    found = sum(getattr(row, "agreement") == what for row in rows)
    return str(found) if found else ""


def line(title, rows):
    steps = [row for row in rows if row.agreement == "within a step"]
    least = f"{len(steps)} ({min(row.share for row in steps):.2f} %)" if steps else ""
    decided = sum("tensors as the peer in float64" in row.note for row in rows)
    cells = [title, str(len(rows)), counted(rows, "equal"), counted(rows, "within"), least]
    cells += [str(decided) if decided else ""]
    cells += [counted(rows, "differs"), counted(rows, "not compared")]
    return cells


COLUMNS = [
    "merges",
    "equal",
    "F32 within 4e-6",
    "16 bits, at most one ULP off (least share equal)",
    "of all: float64 decides",
    "differs",
    "not compared",
]


def table(first, lines):
    """A Markdown table without the columns that are empty throughout."""
    head = [first, *COLUMNS]
    used = [i for i in range(len(head)) if i < 3 or any(cells[i] for cells in lines)]
    yield "| " + " | ".join(head[i] for i in used) + " |"
    yield "|" + "|".join("---" if i == 0 else "---:" for i in used) + "|"
    for cells in lines:
        yield "| " + " | ".join(cells[i] for i in used) + " |"


def grouped(rows, key):
    groups = {}
    for row in rows:
        groups.setdefault(getattr(row, key), []).append(row)
    return groups


def peers_failures(rows):
    """A line for each family that the peer fails on or cuts down: how often, and with which words."""
    yield "| family | of its merges | mergekit |"
    yield "|---|---:|---|"
    for family, of in grouped(rows, "family").items():
        wrong = {}
        for row in of:
            if row.kind.startswith("peer"):
                said = row.verdict.removeprefix("peer ")
                said = re.sub(r"(/|DIR)\S*/models/\S+", "...", said)
                said = re.sub(r" in model \.\.\.| \(and without its table:.*|\.$", "", said)
                said = re.sub(r"\.\d+\.", ".N.", said).replace(".*.", ".N.")
                said = re.sub(r"\((\d+)\)", "(n)", said)
                what = re.sub(r"(Tensor )\S+( required)", r"\1X\2", said)
                wrong.setdefault(what, []).append(said)
        for said in wrong.values():
            kind, _, words = min(said).partition(": ")
            yield f"| {family} | {len(said)} of {len(of)} | {kind}: {shown(words)} |"


def shown(words):
    """An error without its class, in a code span; other words with the tensor names in one."""
    if re.match(r"\w+Error: ", words):
        return f"`{words.split(': ', 1)[1]}`"
    return re.sub(r"(\S*\.\S+)", r"`\1`", words)


def text(rows):
    families, methods = grouped(rows, "family"), grouped(rows, "method")
    agreed = {kind: sum(row.agreement == kind for row in rows) for kind in ("equal", "within", "within a step")}
    yield f"{len(rows)} merges of {len(families)} families by {len(methods)} methods."
    yield f"{agreed['equal']} are equal to the bit, {agreed['within']} are F32 within 4e-6 of the tensor's largest value,"
    yield f"{agreed['within a step']} are of 16 bits and at most one ULP off where they are not equal."
    yield ""
    yield from table("family", [line(family, of) for family, of in families.items()])
    yield ""
    yield from table("method", [line(f"`{method}`", of) for method, of in methods.items()])
    yield ""
    yield "Where mergekit fails, leaves tensors out or writes other names, weld is compared with mergekit's arithmetic"
    yield "on the tensors of the checkpoint:"
    yield ""
    yield from peers_failures(rows)


def write(path, rows):
    """Puts the summary between the marks in a document."""
    before, _, rest = path.read_text().partition(START)
    mark, _, rest = rest.partition("\n")
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{path} has no place for the summary: {START} ... {END}")
    path.write_text(f"{before}{START}{mark}\n" + "\n".join(text(rows)) + f"\n{END}{after}")
