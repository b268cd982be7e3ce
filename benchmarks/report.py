"""The tables as Markdown, as JSON, and put between two markers of docs/benchmarks.md."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cases import Row
from memory import MemoryRow

DOCS = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- table: begin, written by benchmarks/engine.py --update-docs -->", "<!-- table: end -->"
PEERS = {"plain hooks": "", "TransformerLens": "transformer-lens", "nnsight": "nnsight"}
NO_PEERS = "Peers were not measured: `make bench` installs them into `.venv-bench` and runs there."


def markdown(command: str, facts: Mapping[str, Any], rows: list[Row], memory: list[MemoryRow]) -> str:
    """Header, speed table, memory table."""
    versions = facts["versions"]
    where = ", ".join(f"{name} {version}" for name, version in versions.items())
    parts = [f"`{command}`: {facts['model']}, fp32, {facts['threads']} threads; {where}."]
    if not facts["peers"]:
        parts.append(NO_PEERS)
    if rows:
        parts.append(speed_table(rows, facts))
    if memory:
        parts.append(memory_table(memory))
    return "\n\n".join(parts) + "\n"


def speed_table(rows: list[Row], facts: Mapping[str, Any]) -> str:
    """One line a case: CPU ratios to the base run; of Assay also the wall ratio. Quick runs get no verdict."""
    labels = [label for label in PEERS if facts["peers"] or label == "plain hooks"]
    heads = [f"{label} {facts['versions'].get(PEERS[label], '')}".strip() for label in labels]
    lines = [_line(["case", "base = 1", "Assay", "Assay, wall", "target", *heads]), _line(["---"] * (5 + len(labels)))]
    for row in rows:
        verdict = "" if facts["quick"] else ", met" if row.ours.cpu <= row.target else ", missed"
        lines.append(_line([
            row.case, f"{row.base} ({seconds(row.base_seconds)} s)", _cell(row, "Assay", f"{row.ours.cpu:.2f}"),
            f"{row.ours.wall:.2f}", f"{row.target:.3g}{verdict}", *(_cell(row, label) for label in labels),
        ]))  # fmt: skip
    return "\n".join(lines)


def seconds(value: float) -> str:
    """Two digits where that says enough: 1.2, 8.9, 77, 385."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _cell(row: Row, label: str, *first: str) -> str:
    """CPU ratios of all ways of one tool."""
    ways = [f"{ratio.cpu:.2f} {way}" for (peer, way), ratio in row.peers.items() if peer == label]
    return "<br>".join([*first, *ways]) or "-"


def memory_table(rows: list[MemoryRow]) -> str:
    """One line a capture: what came back, how far the process grew, and the difference."""
    lines = [_line(["capture", "positions", "prompts", "outputs, MB", "peak above the model, MB", "difference, MB"]),
             _line(["---"] * 6)]  # fmt: skip
    for row in rows:
        sizes = (f"{size:.0f}" for size in (row.outputs, row.extra, row.working))
        lines.append(_line([f"{row.model} {row.site}", row.positions, f"{row.prompts:,}", *sizes]))
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def as_json(command: str, facts: Mapping[str, Any], rows: list[Row], memory: list[MemoryRow]) -> str:
    """Everything measured, with the spread over rounds."""
    cases = [{**asdict(row), "peers": [{"peer": peer, "way": way, **asdict(ratio)}
                                       for (peer, way), ratio in row.peers.items()]} for row in rows]  # fmt: skip
    sizes = [{**asdict(row), "difference": row.working} for row in memory]
    return json.dumps({"command": command, **facts, "cases": cases, "memory": sizes}, indent=1) + "\n"


def update_docs(text: str, path: Path = DOCS) -> None:
    """Replace what stands between the markers. Raises ValueError where they are missing."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path.name} has no line {BEGIN!r} followed by {END!r}")
    path.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")
