"""The pages in a real browser: drawn, silent on the network, within the width of a phone.

Needs Chromium (Debian: apt-get install chromium; or set CHROMIUM to its path).
"""

import json
import os
import re
import shutil
import subprocess

import pytest

from assay.report.html import heat_map_html, render_report
from report_records import demo, sweep

pytestmark = pytest.mark.whole

PROBE = """<script>
window.faults = [];
addEventListener("error", (e) => faults.push("error: " + e.message), true);
addEventListener("securitypolicyviolation", (e) => faults.push("blocked: " + e.blockedURI));
addEventListener("load", () => setTimeout(() => {
  const root = document.documentElement, plots = [...document.querySelectorAll(".plot")];
  const clipped = [...document.querySelectorAll(".plot svg text")].filter((t) => {
    const inner = t.getBoundingClientRect(), outer = t.closest(".plot").getBoundingClientRect();
    return inner.width && (inner.right > outer.right + 1 || inner.bottom > outer.bottom + 1 || inner.left < outer.left - 1);
  });
  const report = { faults, drawn: root.dataset.drawn, maps: document.querySelectorAll(".hm image, .hm path").length,
    plots: plots.length, overflow: root.scrollWidth - root.clientWidth, clipped: clipped.map((t) => t.textContent),
    requests: performance.getEntriesByType("resource").map((r) => r.name).filter((n) => /^https?:/.test(n)),
    paper: getComputedStyle(document.body).backgroundColor };
  const out = document.createElement("output"); out.id = "probe"; out.textContent = JSON.stringify(report);
  document.body.append(out);
}, 2500));
</script>"""


def browse(page: str, tmp_path, width: int = 1280, *flags: str) -> dict:
    """What the probe saw in the page, with the network off."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "Chromium not found: apt-get install chromium, or set CHROMIUM to its path"
    (tmp_path / "page.html").write_text(page.replace("<body>", "<body>" + PROBE, 1))
    command = [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile",
               "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=15000", "--dump-dom",
               f"--window-size={width},900", *flags, f"file://{tmp_path}/page.html"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    found = re.search(r'<output id="probe">(.*?)</output>', done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(found.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@pytest.mark.parametrize("width", [1280, 500])
def test_report_is_drawn_without_errors_or_requests(width, tmp_path):
    seen = browse(render_report(demo()), tmp_path, width)
    assert seen["faults"] == [] and seen["requests"] == []
    assert seen["drawn"] == "2" and seen["plots"] == 2 and seen["maps"] >= 2
    assert seen["overflow"] <= 0 and seen["clipped"] == []


def test_wide_heat_map_is_drawn(tmp_path):
    seen = browse(heat_map_html(sweep(12, 512)), tmp_path)
    assert seen["faults"] == [] and seen["drawn"] == "1" and seen["clipped"] == []


def test_dark_mode_is_followed(tmp_path):
    seen = browse(heat_map_html(sweep()), tmp_path, 1280, "--blink-settings=preferredColorScheme=0")
    assert seen["paper"] == "rgb(20, 24, 29)" and seen["faults"] == []
