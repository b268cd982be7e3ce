"""Write docs/gates.md: claim kinds, gates and searches, from the code itself. Run: make docs"""

import sys
from pathlib import Path

import assay.evidence  # noqa: F401  (registers everything)
from assay.evidence.gates import GATES, gates_for
from assay.evidence.gates.base import Gate
from assay.evidence.kinds import KINDS
from assay.evidence.search import SEARCHES, searches_for
from assay.sites import GLOBAL_SITES, INDEXED, LAYER_SITES


def page() -> str:
    """Kinds with their gates and searches, then how each is measured, then sites."""
    lines = ["# Claim kinds, gates, searches, sites", "",
             "Made by `make docs` from the code. How they decide: [evidence](evidence.md).", ""]  # fmt: skip
    for name in KINDS.names():
        kind = KINDS.get(name)
        lines += [f"## Kind: {name}", "", _first_line(type(kind).__module__), "", "| gate | bar | decides |", "|---|---|---|"]
        lines += [f"| `{gate.name}` | {gate.bars.get(name, gate.sesoi):g} | {_decides(gate)} |" for gate in gates_for(name)]
        lines += ["", f"Searches: {', '.join(f'`{method.name}`' for method in searches_for(name)) or 'none'}.", ""]
    lines += ["## How gates are measured", ""]
    for module in dict.fromkeys(gate.contrast.__module__ for gate in GATES):
        names = [gate.name for gate in GATES if gate.contrast.__module__ == module]
        lines += [f"### {', '.join(f'`{name}`' for name in names)}", "", *_text(module), ""]
    lines += ["## How searches try", ""]
    for module in dict.fromkeys(method.find.__module__ for method in SEARCHES):
        names = [method.name for method in SEARCHES if method.find.__module__ == module]
        lines += [f"### {', '.join(f'`{name}`' for name in names)}", "", *_text(module), ""]
    return "\n".join([*lines, *_sites()]) + "\n"


def _decides(gate: Gate) -> str:
    if gate.precondition:
        return "whether there is anything to test"
    if gate.asked:
        return f"where the claim is given `{gate.asked}`"
    return "as the claim says" if callable(gate.required) else "required" if gate.required else "reported"


def _first_line(module: str) -> str:
    return _text(module)[0]


def _text(module: str) -> list[str]:
    """What a module says of itself; formulas keep their indent as code."""
    text = (sys.modules[module].__doc__ or "").strip()
    return [line if not line.startswith("   ") or line.lstrip()[:1].isalpha() else f"    {line}" for line in text.splitlines()]


def _sites() -> list[str]:
    rows = [(name, "") for name in GLOBAL_SITES] + [(f"{name}.L", f"{name}.L.N: one {INDEXED[name]}" if name in INDEXED else "")
                                                    for name in LAYER_SITES]  # fmt: skip
    rows += [("latent.DICTIONARY", "latent.DICTIONARY.N: one latent"), ("block.PATH", "block.PATH.N: one channel"),
             ("path:MODULE:out", "a raw module tensor; or in")]  # fmt: skip
    return ["## Sites", "", "What each one is: [glossary](glossary.md) and [tour](tour.md).", "", "| site | part of it |",
            "|---|---|", *(f"| `{name}` | {part} |" for name, part in rows)]  # fmt: skip


if __name__ == "__main__":
    Path(__file__).with_name("gates.md").write_text(page())
