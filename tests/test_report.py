"""Pages and terminal pictures: complete, safe with any text, and asking nobody for anything."""

import io
import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from assay.errors import UsageError
from assay.report.html import heat_map_html, render_report, script_json
from assay.report.markdown import render_markdown, safe
from assay.report.story import claim_card, number, outlook, percent, unexplained_rows
from assay.report.terminal import patch_table, tasks_table, verdict_panel
from report_records import HOSTILE, TOKENS, demo, refuted, supported, sweep, tasks, undecided


class Page(HTMLParser):
    """Elements with attributes, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements, self.text, self._inside = [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.text += " " + data

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def html():
    return render_report(demo())


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_every_section_and_number_is_there(page):
    words = " ".join(page.text.split())
    for part in ("In one paragraph", "What the model can do", "Where the answer is carried", "Which heads move it",
                 "The claim, tested", "A wrong claim", "What is still unexplained", "Run it again", "Words used here",
                 "supported", "refuted", "93% to 98%", "correlation 0.93", "59%", "14 looks taken",
                 "What this does not show", "6 of 140 prompts (4%)", "assay claim list", "discover 60",
                 "random.sufficiency 20"):  # fmt: skip
        assert part in words, part


def test_no_element_refers_to_anything_outside(html, page):
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "action", "srcset", "poster", "data", "background"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
        assert tag not in ("iframe", "object", "embed", "base", "link")
        assert not re.search(r"url\((?!#)", attributes.get("style") or "")
    style = html[html.index("<style>") : html.index("</style>")]
    assert "@import" not in style and "url(" not in style and "http" not in style
    policy = next(a["content"] for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "connect-src" not in policy


def test_the_script_library_is_there_once(html):
    assert html.count("plotly.js v") == 1


def test_hostile_text_stays_text():
    report = demo(model={"name": HOSTILE, "x": HOSTILE}, date=HOSTILE, claims=[undecided(), undecided()],
                  heads=sweep(30, 9, "heads", task=HOSTILE), unexplained={HOSTILE: 0.5}, ledger={HOSTILE: 3},
                  run={"commands": [HOSTILE], "timings": {HOSTILE: 1.0}})  # fmt: skip
    page = Page(render_report(report))
    assert page.named("img") == []
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert len(page.named("script")) == len(Page(render_report(demo())).named("script"))
    assert "{{7*7}}" in page.text and "&lt;" not in page.text


def test_json_for_scripts_cannot_end_the_script():
    text = str(script_json({"a": "</script><!--&\u2028"}))
    assert not set("<>&\u2028") & set(text) and json.loads(text) == {"a": "</script><!--&\u2028"}


def test_map_data_are_the_record(html):
    found = re.search(r'<script type="application/json" id="data-positions">(.*?)</script>', html)
    data = json.loads(found.group(1))
    flat = [round(v, 5) for row in demo().positions.effect for v in row]
    assert [v for row in data["z"] for v in row] == flat
    assert data["labels"][4].startswith("4 &lt;/script&gt;") and data["layers"] == list(range(30))


def test_tables_have_headers_pictures_have_words_headings_have_order(page):
    assert all(a.get("scope") in ("col", "row") for a in page.named("th"))
    assert all(a.get("aria-label") for a in page.named("figure"))
    assert all(a.get("aria-hidden") == "true" for a in page.named("svg"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:]))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.named("a")} <= set(ids) and page.named("html")[0]["lang"] == "en"


def test_text_has_enough_contrast(html):
    blocks = re.findall(r":root \{(.*?)\}", html[: html.index("</style>")], flags=re.DOTALL)[:2]
    for block in blocks:
        ink = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
        pairs = [(name, paper) for name in ("ink", "muted", "accent") for paper in ("paper", "card", "soft")]
        pairs += [(name, f"{name}-soft") for name in ("good", "bad", "open", "none")]
        for front, back in pairs:
            assert contrast(ink[front], ink[back]) >= 4.5, (front, back)


def contrast(a: str, b: str) -> float:
    """WCAG contrast ratio."""
    def light(hexed):
        parts = [int(hexed[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_an_empty_report_says_so():
    text = Page(render_report(demo(tasks=[], claims=[], unexplained={}, ledger={}, run={}, tokens=[]))).text
    assert "No task was measured" in text and "No claim was tested" in text and "treat everything as unexplained" in text


def test_a_verdict_with_only_the_promised_keys_is_a_card():
    bare = {key: refuted()[key] for key in ("claim", "kind", "verdict", "reasons", "qualifiers", "sentence")}
    gates = [{key: gate[key] for key in ("name", "estimate", "low", "high", "sesoi", "p", "passed")}
             for gate in refuted()["gates"]]  # fmt: skip
    card = claim_card({**bare, "gates": gates})
    assert card["tone"] == "bad" and card["controls"] == [] and card["counterexamples"] is None
    assert "not passed" in Page(render_report(demo(claims=[{**bare, "gates": gates}]))).text


def test_unexplained_shares_are_clipped_and_kept_in_order():
    rows = unexplained_rows({"confirm": {"share": 1.3}, "ood": -0.2, "loss": None})
    assert [(row["name"], row["text"]) for row in rows] == [("confirm", "100%"), ("ood", "0%")]
    assert unexplained_rows({"share": 0.25})[0]["text"] == "25%"


def test_heat_map_page_stands_alone():
    page = Page(heat_map_html(sweep(holes=True), TOKENS))
    assert "resid_post on ioi" in page.text and len(page.named("table")) == 2
    assert len(Page(heat_map_html(sweep(12, 512))).named("table")) == 1
    with pytest.raises(UsageError, match="tokens"):
        heat_map_html(sweep(), ["one"])


def test_markdown_twin_has_the_same_numbers_and_no_markup_from_outside():
    text = render_markdown(demo(model={"name": HOSTILE}, claims=[supported(), undecided()]))
    assert "<img" not in text.replace("\\<", "") and "\x1b" not in text
    assert "96% (93% to 98%)" in text and "correlation 0.93" in text and "| sufficiency | 0.41 |" in text
    assert safe("a|b*c") == "a\\|b\\*c"


def test_numbers_for_people():
    assert (number(-0.001), number(-1.5), number(float("nan")), number(None)) == ("0.00", "−1.50", "–", "–")


# terminal -----------------------------------------------------------------------------------------


def printed(renderable, width: int = 100, **options) -> str:
    console = Console(file=io.StringIO(), width=width, **options)
    console.print(renderable)
    return console.file.getvalue()


def test_patch_table_reads_without_colour():
    text = printed(patch_table(sweep(), TOKENS), no_color=True)
    assert "resid_post, 40 pairs, 2 dropped" in text and "2 ␣Mary" in text and "cells without difference: 60" in text
    row = next(line for line in text.splitlines() if line.split()[:1] == ["0"])
    assert row.endswith("  ·  ·+10" + "  ·" * 13)


def test_grid_names_its_columns_in_full():
    result = sweep(4, 12)
    columns = [str(place) for place in range(-12, 0)]
    text = printed(patch_table(type(result)(**{**result.__dict__, "columns": columns})), width=80)
    assert next(line for line in text.splitlines() if line.startswith("  layer")).split()[1:] == columns


def test_patch_table_leaves_the_grid_out_where_it_does_not_fit():
    assert "in steps of" not in printed(patch_table(sweep()), width=40)
    assert "in steps of" in printed(patch_table(sweep()), width=80)
    assert max(map(len, printed(patch_table(sweep(12, 512)), width=80).splitlines())) <= 80


def test_terminal_obeys_no_markup_and_no_control_characters():
    bad = {**undecided(), "sentence": "[red]x[/nope]" + HOSTILE, "does_not_show": ["[/]" + HOSTILE]}
    for renderable in (verdict_panel(bad), patch_table(sweep(task=HOSTILE), [HOSTILE] * 16)):
        text = printed(renderable, width=120)
        assert "\x1b" not in text and ("[red]x[/nope]" in text or "position" in text)


def test_verdict_panel_and_tasks_table_say_everything():
    text = " ".join(printed(verdict_panel(supported()), width=120).split())
    assert "✓ supported" in text and "0.40 to 0.55" in text and "This does not show" in text
    assert "96%" in printed(tasks_table(tasks())) and "2.80 to 3.50" in printed(tasks_table(tasks()))


def inconclusive(**given):
    """A claim whose untrained gate failed so."""
    verdict = supported()
    tables = {"per_control": {"all": 0.58, "blocks": 0.89}}
    lost = {**verdict["gates"][1], "name": "untrained", "passed": False, "required": True, "tables": tables, **given}
    decision = {**verdict["decision"], "more_clusters": 224}
    return {**verdict, "verdict": "inconclusive", "gates": [*verdict["gates"], lost], "decision": decision}


def test_more_data_are_asked_for_only_where_they_may_help():
    below, above = inconclusive(estimate=0.04, sesoi=0.05), inconclusive(estimate=0.07, sesoi=0.05)
    assert outlook(below) == "more data would hardly support it as it stands; not above the bar: untrained (0.04, bar 0.05)"
    assert outlook(above) == "about 224 more sentence patterns or documents per split would probably settle it"
    assert outlook(supported()) == ""
    text = " ".join(printed(verdict_panel(below), width=160).split())
    assert "more data would hardly" in text and "untrained: the strongest of its 2 controls is blocks (0.89)" in text


def test_a_shown_claim_lists_its_counterexamples():
    found = {"hits": 3, "candidates": 120, "share": 0.03, "worst": [{"clean": "The bagel slept.", "score": -4.95}]}
    verdict = {**supported(), "counterexamples": found}
    text = " ".join(printed(verdict_panel(verdict, every=True), width=160).split())
    assert "counterexamples: 3 of 120 that were tried (3%)" in text and "−4.95 The bagel slept." in text
    assert "bagel" not in printed(verdict_panel(verdict), width=160)


@pytest.mark.parametrize(("share", "words"), [(0, "0%"), (1, "100%"), (0.5, "50%"), (0.9995, "99.95%"), (0.0005, "0.05%"),
                                              (1e-6, "under 0.01%"), (1 - 1e-6, "over 99.99%"), (None, "–")])  # fmt: skip
def test_nearly_all_is_not_called_all(share, words):
    assert percent(share) == words
