"""Documents without a server: arguments, plain JSON, exports that are text only, notebooks, the description of the API."""

import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import assay.app
from app_atlas import HOSTILE, shared_app_atlas
from assay.app import export
from assay.app.arguments import checked, flag, integer, number, record, refuse, schema, string, strings
from assay.app.blocks import TYPES, column, contexts, facts, href, table, text
from assay.app.documents import PAGES, Made, clean, make_document, page
from assay.app.export import render
from assay.app.openapi import describe
from assay.app.plain import BLOCKS
from assay.app.workspace import Workspace
from assay.errors import UsageError

ALL = schema(
    ("word",), word=string("A word.", longest=8), kind=string("A kind.", "a", ("a", "b")), n=integer("A count.", 3, 1, 9),
    x=number("A number.", None, -1.0, 1.0), on=flag("On?"), many=strings("Several.", 3, 4), parts=record("Parts."),
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return shared_app_atlas(tmp_path_factory)


@pytest.fixture
def hostile(tmp_path):
    """A page that is nothing but hostile text."""

    @page("hostile", HOSTILE, HOSTILE)
    def hostile(workspace, arguments):
        rows = [{"a": {"value": HOSTILE, "href": "javascript:alert(1)"}, "b": [HOSTILE, "</script><script>alert(2)</script>"]}]
        window = {"pieces": [HOSTILE, "\x00", "</noscript>"], "values": [1.0, 0.0, 0.0], "at": 0, "document": HOSTILE,
                  "position": 0}  # fmt: skip
        group: Any = {"label": HOSTILE, "windows": [window]}
        return Made([text("t", HOSTILE, "]]>", "<!--"), facts("f", [{"label": HOSTILE, "value": HOSTILE}]),
                     table("r", [column("a", HOSTILE), column("b", "b", "tokens")], rows), contexts("c", [group], 1.0)],
                    title=HOSTILE)  # fmt: skip

    yield make_document(Workspace(tmp_path), "hostile")
    del PAGES._items["hostile"]


# arguments ---------------------------------------------------------------------------------------


def test_defaults_are_filled_in_and_texts_of_an_address_become_values():
    assert checked(ALL, {"word": "w"}, "here") == {"word": "w", "kind": "a", "n": 3, "on": False}
    given = {"word": "w", "n": "5", "x": "-0.5", "on": "true", "many": "a, b", "parts": '{"a": 1}'}
    assert checked(ALL, given, "here", loose=True) == {
        "word": "w", "kind": "a", "n": 5, "x": -0.5, "on": True, "many": ["a", "b"], "parts": {"a": 1}}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [("word", 1), ("word", ""), ("word", "x" * 9), ("kind", "c"), ("n", 0), ("n", 10), ("n", 1.5), ("n", True), ("n", "5"),
     ("x", 1.01), ("x", math.inf), ("x", math.nan), ("x", "0"), ("on", 1), ("on", "true"), ("many", ["a"] * 4),
     ("many", ["longer"]), ("many", [1]), ("parts", []), ("parts", "{}"), ("n", 10**400), ("n", None), ("other", 1)],
)  # fmt: skip
def test_what_the_schema_does_not_allow_is_refused_by_name(name, value):
    with pytest.raises(UsageError) as error:
        checked(ALL, {"word": "w", name: value}, "here")
    said = refuse(error.value)
    assert name in said["message"] and "allowed" in said["message"]


@given(st.dictionaries(st.sampled_from(sorted(ALL["properties"])), st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10), st.lists(st.text(max_size=5), max_size=4),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2))))  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_the_check_is_that_of_the_published_schema(given):
    """The schema that agents and the API description get, by an independent validator."""
    finite = not any(isinstance(value, float) and not math.isfinite(value) for value in given.values())
    small = not any(isinstance(value, int) and abs(value) >= 1 << 63 for value in given.values())
    fits = jsonschema.Draft202012Validator(ALL).is_valid(given) and finite and small
    many = given.get("many")
    if isinstance(many, str):  # one text with commas: also its parts have to fit
        fits = fits and len([part for part in many.split(",") if part.strip()]) <= 3 and not many.lstrip().startswith("[")
        fits = fits and all(len(part.strip()) <= 4 for part in many.split(","))
    try:
        checked(ALL, given, "here")
        passed = True
    except UsageError:
        passed = False
    if not (isinstance(many, str) and many.lstrip().startswith("[")):
        assert passed == fits


@given(st.text(), st.text())
@settings(max_examples=100, deadline=None)
def test_links_hold_any_text(name, value):
    from urllib.parse import parse_qs, urlsplit

    address = href("feature", set=value, feature=name)
    held = parse_qs(urlsplit(address[1:]).query, keep_blank_values=True, errors="surrogatepass")
    assert held.get("feature", [""]) == [name] and held.get("set", [""]) == [value]


# plain JSON --------------------------------------------------------------------------------------


def test_documents_are_plain_json():
    value = {"a": np.float32(1.5), "b": np.array([1, 2]), "c": math.nan, "d": (1, 2.0), "e": "x\ud800y", 3: None,
             "f": np.array([math.inf, 1.0]), "g": "🙂"}  # fmt: skip
    found = clean(value)
    assert found == {"a": 1.5, "b": [1, 2], "c": None, "d": [1, 2.0], "e": "x\ufffdy", "3": None, "f": [None, 1.0], "g": "🙂"}
    json.dumps(found, allow_nan=False).encode()


def test_a_page_is_one_registration(tmp_path, hostile):
    assert hostile["page"] == "hostile" and hostile["counts"]["stated"] == 0 and hostile["params"] == {}
    with pytest.raises(UsageError, match="did you mean|allowed"):
        make_document(Workspace(tmp_path), "hostil")


def test_names_that_are_words_of_the_glossary_get_help_and_data_do_not():
    from assay.app.help import explained, helped, word_of

    assert [word_of(name) for name in ("Claims", "the map", "prompt", "Dose: how hard", "")] == ["claim", "map", "", "dose", ""]
    rows = [{"split": "token"}]
    (found,) = helped([table("a", [column("split", "Splits"), column("b", "token", help="latent")], rows, title="Anything")])
    assert [each.get("help") for each in found["columns"]] == ["split", "latent"] and "help" not in found
    assert found["rows"] == rows
    line = explained("Features and other features, in one atlas.")
    spans = [{"text": "Features", "term": "feature"}, {"text": "atlas", "term": "atlas"}]
    assert line == [spans[0], " and other features, in one ", spans[1], "."]


# exports -----------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Tags and attributes of a page, and what is in its JSON element."""

    def __init__(self):
        super().__init__()
        self.tags, self.urls, self.json, self._inside = [], [], "", False

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        given = dict(attrs)
        self.urls += [value for name, value in attrs if name in ("src", "href", "srcset", "action") and value]
        assert not any(name.startswith("on") for name in given), (tag, given)
        self._inside = tag == "script" and given.get("type") == "application/json"

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        self.json += data if self._inside else ""


def read(page):
    reader = Reader()
    reader.feed(page)
    return reader


def test_an_export_holds_the_document_and_asks_nobody_for_anything(hostile):
    page = render(hostile)
    reader = read(page)
    assert "img" not in reader.tags and all(url.startswith("data:") for url in reader.urls)
    assert "Content-Security-Policy" in page and "default-src 'none'" in page
    if export.SHELL.is_file():
        assert json.loads(reader.json)["document"] == json.loads(json.dumps(hostile))
        assert json.loads(reader.json)["terms"]["feature"]
        assert reader.tags.count("script") == 2


def test_without_a_built_front_end_the_export_is_plain_html(hostile, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "SHELL", tmp_path / "none")
    page = render(hostile)
    reader = read(page)
    assert "script" not in reader.tags and "img" not in reader.tags and reader.urls == []
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") >= 8


def test_every_type_of_block_has_plain_html():
    assert set(BLOCKS) == set(TYPES)


def test_plain_html_has_the_numbers_of_the_document(made, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "SHELL", tmp_path / "none")
    document = make_document(Workspace(made.path), "feature", {"feature": "latent.tiny.4"})
    page = render(document)
    blocks = {block["id"]: block for block in document["blocks"]}
    for count in blocks["histogram"]["series"][0]["counts"]:  # type: ignore[typeddict-item]
        assert f"<td>{count:.4g}</td>" in page
    assert "0.54 (0.49 to 0.59)" in page


def test_show_in_a_notebook_is_a_frame_that_cannot_reach_out(made):
    shown = assay.app.show("feature", made.path, feature="latent.tiny.3")
    frame = shown._repr_html_()
    assert re.fullmatch(r'<iframe srcdoc="[^"]*" sandbox="allow-scripts allow-downloads"[^<]*></iframe>', frame)
    saved = shown.save(made.path.parent / "page.html")
    assert saved.read_text() == render(shown.document)
    with pytest.raises(UsageError, match="feature"):
        assay.app.show("feature", made.path)


# description -------------------------------------------------------------------------------------


def test_the_description_names_all_that_is_registered_and_refers_to_nothing_that_is_not():
    from assay.app.documents import pages
    from assay.app.verbs import verbs

    spec = describe()
    assert {f"/api/pages/{name}" for name in pages().names()} <= set(spec["paths"])
    assert {f"/api/verbs/{name}" for name in verbs().names()} <= set(spec["paths"])
    refs = set(re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', json.dumps(spec)))
    assert refs <= set(spec["components"]["schemas"])
    names = [operation["operationId"] for path in spec["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))
    for schema_of in spec["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema_of)


# what a map leaves open --------------------------------------------------------------------------


def test_shares_of_a_map_are_said_with_what_stands_beside_them():
    from assay.app.sets import unexplained_of

    detail = {"active_low": 0.2, "active_high": 0.35, "variance_all_latents": 0.8, "tokens_any": 0.6}
    summary = {"unexplained": {"active_latents": 0.75, "variance": 0.5, "tokens": None}, "shares": {"detail": detail}}
    items = unexplained_of(summary)
    assert [item["share"] for item in items] == [0.75, 0.5]
    assert (items[0]["low"], items[0]["high"]) == (0.65, 0.8) and "20%" in items[1]["note"]  # type: ignore[typeddict-item]
    only = {"shares": {"variance": {"value": 0.25, "low": 0.125, "high": 0.5}, "detail": {}}}
    assert unexplained_of(only)[0] | {"what": ""} == {"what": "", "share": 0.75, "low": 0.5, "high": 0.875}
    assert unexplained_of({}) == []
