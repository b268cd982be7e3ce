"""Write docs/findings.md: what each paper says and how it is measured here, from the findings themselves. Run: make docs"""

from pathlib import Path

import assay.replicate.run  # noqa: F401  (registers them)
from assay.replicate.base import FINDINGS


def page() -> str:
    """One section per finding."""
    lines = ["# Findings", "", "Made by `make docs` from the findings' files. What came out here, with verdicts and bars:"
             " [replications](replications.md).", ""]  # fmt: skip
    for one in FINDINGS:
        lines += [f"## `{one.name}`: {one.title}", "", f"**{one.paper}.** {one.published}", ""]
        lines += [f"*Measured here:* {one.method}", "", f"*Why it may differ:* {one.differs}", ""]
    return "\n".join(lines[:-1]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("findings.md").write_text(page())
