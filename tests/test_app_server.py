"""The server of the app over real sockets: who gets in, what comes out, and what is written down."""

import json
import shutil
import socket
from urllib.parse import parse_qsl

import pytest
from pydantic import TypeAdapter

from app_atlas import HOSTILE, shared_app_atlas
from app_server import TOKEN, running
from assay import permissions
from assay.app import security
from assay.app.blocks import DocumentRecord
from assay.app.documents import pages
from assay.app.verbs import VERBS, Verb, verbs
from assay.app.workspace import Workspace
from assay.errors import UsageError

DOCUMENT = TypeAdapter(DocumentRecord)
FORMS = DOCUMENT.json_schema()["$defs"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return shared_app_atlas(tmp_path_factory)


@pytest.fixture(scope="module")
def server(made):
    with running(Workspace(made.path, role="read", actor="tester", loaded=made.model)) as client:
        yield client


# who gets in -------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "", "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}", TOKEN])
def test_the_api_wants_the_token_and_says_where_it_is(server, token):
    answer = server.get("/api/pages", Authorization=token)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.error["argument"] == "Authorization" and "assay app" in answer.error["hint"]
    assert server.post("/api/verbs/feature_list", Authorization=token).status == 401
    assert server.get("/api/pages").status == 200


def test_the_page_itself_needs_no_token_and_holds_none(server):
    answer = server.get("/", Authorization=None)
    assert answer.status in (200, 503)  # 503: the front end of this checkout is not built
    assert TOKEN.encode() not in answer.body


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8421", "127.0.0.1.evil.example", "", "[::1", "localhost."])
def test_names_that_only_resolve_here_are_refused(server, host):
    for path in ("/", "/api/pages"):
        assert server.get(path, Host=host).status in (421, 400)
    assert server.get("/api/pages", Host=f"localhost:{server.port}").status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:1", "file://"])
def test_other_origins_are_refused_even_with_the_token(server, origin):
    assert server.post("/api/verbs/feature_list", Origin=origin).status == 403
    assert server.post("/api/verbs/feature_list", Origin=f"http://127.0.0.1:{server.port}").status == 200
    assert server.post("/api/verbs/feature_list", Sec_Fetch_Site="cross-site").status == 403


def test_bodies_that_are_too_large_or_no_json_are_refused(server):
    path = "/api/verbs/feature_list"
    assert server.ask("POST", path, raw=b"x" * (security.LARGEST + 1)).status == 413
    assert server.ask("POST", path, raw=b"{}", Content_Length=str(security.LARGEST + 1)).status == 413
    assert server.ask("POST", path, raw=b"{}", Content_Type="text/plain").status == 415
    for raw in (b"", b"[]", b"{", b'{"limit": NaN}', b"[" * 100_000, b'{"limit": 1e999}', b"\xff\xfe"):
        answer = server.ask("POST", path, raw=raw)
        assert answer.status == 400 and answer.error["message"], raw


def test_a_body_without_a_length_is_stopped_while_it_comes_in(server):
    head = (f"POST /api/verbs/feature_list HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")  # fmt: skip
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as link:
        link.sendall(head.encode())
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        try:
            for _ in range(security.LARGEST // 0x10000 + 2):
                link.sendall(chunk)
            answer = link.recv(4096)
        except (BrokenPipeError, ConnectionResetError):
            answer = b"HTTP/1.1 413"
    assert answer.startswith(b"HTTP/1.1 413")


def test_every_answer_carries_the_policy(server):
    for path in ("/", "/api/pages", "/api/pages/overview", "/api/nothing", "/nothing"):
        headers = server.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers and "access-control-allow-origin" not in headers
    assert server.get("/api/pages").headers["cache-control"] == "no-store"


def test_off_loopback_a_token_must_be_given_and_names_stay_checked():
    with pytest.raises(UsageError, match="--token"):
        security.token_for("0.0.0.0", None)
    with pytest.raises(UsageError, match="at least 16"):
        security.token_for("0.0.0.0", "short")
    assert security.token_for("0.0.0.0", "x" * 16) == "x" * 16
    assert security.token_for("127.0.0.1", None) != security.token_for("127.0.0.1", None)
    assert all(map(security.is_loopback, ("127.0.0.1", "127.0.0.2", "::1", "localhost")))
    assert not any(map(security.is_loopback, ("0.0.0.0", "10.0.0.1", "example.org", "localhost.example.org")))
    guard = security.Guard(lambda *_: None, "t", "0.0.0.0")  # type: ignore[arg-type]
    named = security.Guard(lambda *_: None, "t", "127.0.0.1", ["Atlas.Example"])  # type: ignore[arg-type]
    assert named._knows("atlas.example") and not named._knows("other.example") and not named._knows("10.1.2.3")
    assert guard._knows("10.1.2.3:80") and guard._knows("[fe80::1]:80") and not guard._knows("evil.example")


# pages -------------------------------------------------------------------------------------------


def addresses(made):
    """Every page of the app, with arguments where it needs some."""
    needs = {"claim": [f"claim={made.tested}", f"claim={made.stated}"], "feature": ["feature=latent.tiny.3", "feature=4"],
             "search": ["", "query=w2", "query=%20w2&how=fires", "verdict=supported", "sort=name&offset=10"]}  # fmt: skip
    return [(name, query) for name in ("overview", "feature", "search", "neurons", "claims", "claim", "compare", "glossary")
            for query in needs.get(name, [""])]  # fmt: skip


def test_every_page_is_a_document_of_the_described_form(server, made):
    for name, query in addresses(made):
        answer = server.get(f"/api/pages/{name}?{query}")
        assert answer.status == 200, (name, query, answer.body)
        document = DOCUMENT.validate_python(answer.json)
        ids = [block["id"] for block in document["blocks"]]
        assert len(ids) == len(set(ids)) and not document["empty"]
        assert document["counts"]["stated"] == 2 and document["page"] == name
        for block in answer.json["blocks"]:
            allowed = set(FORMS[block["type"].capitalize() + "Block"]["properties"])
            assert set(block) <= allowed, (name, block["id"], set(block) - allowed)


def test_every_page_works_on_an_empty_atlas_and_says_what_to_run(tmp_path):
    with running(Workspace(tmp_path / "none")) as client:
        for name in ("overview", "search", "neurons", "claims", "compare"):
            document = client.get(f"/api/pages/{name}").json
            assert document["empty"] and "assay " in json.dumps(document["blocks"]), name
        assert client.get("/api/pages/glossary").status == 200
        for query in ("feature?feature=x", "claim?claim=x", "compare?a=zzz", "search?set=zzz", "neurons?set=zzz"):
            assert client.get(f"/api/pages/{query}").status == 404, query
    assert not (tmp_path / "none" / "atlas.duckdb").exists()


def test_words_with_help_are_in_the_glossary(server, made):
    known = set()
    for block in server.get("/api/pages/glossary").json["blocks"]:
        known.update(item["word"] for item in block["items"])
    used = set()
    for name, query in addresses(made):
        collect(server.get(f"/api/pages/{name}?{query}").json, used)
    assert len(used) > 15 and used <= known, used - known


def test_every_page_has_help_behind_words_also_on_an_empty_atlas(server, made, tmp_path):
    from assay.app.documents import make_document

    empty = Workspace(tmp_path / "none", model="smollm2-135m")
    for entry in pages():
        if entry.listed:
            for document in (make_document(empty, entry.name), server.get(f"/api/pages/{entry.name}").json):
                used: set[str] = set()
                collect(document, used)
                assert used, entry.name
    used = set()
    collect(server.get("/api/pages/task?task=ioi").json, used)
    assert {"task", "split"} <= used


def collect(value, found):
    """All `help` and `term` words of a document."""
    if isinstance(value, dict):
        found.update(value[key] for key in ("help", "term") if isinstance(value.get(key), str))
        for item in value.values():
            collect(item, found)
    elif isinstance(value, list):
        for item in value:
            collect(item, found)


def test_the_overview_says_first_what_is_not_explained(server, made):
    blocks = server.get("/api/pages/overview").json["blocks"]
    assert blocks[0]["type"] == "unexplained"
    shares = [item["share"] for item in blocks[0]["items"]]
    assert shares[:3] == [0.9, 0.75, 0.4]
    assert blocks[0]["items"][2] | {"what": ""} == {"what": "", "share": 0.4, "low": 0.3, "high": 0.5}


def test_a_feature_shows_what_the_atlas_holds(server, made):
    from assay.atlas.mapped import Mapped

    record = Mapped(made.path).page(made.set, "latent.tiny.4").record
    blocks = {block["id"]: block for block in server.get("/api/pages/feature?feature=latent.tiny.4").json["blocks"]}
    score = blocks["scores"]["rows"][0]
    assert (score["value"]["value"], score["shuffled"], score["untrained"], score["failed"]) == (0.54, 0.5, 0.55, 2)
    assert [group["label"] for group in blocks["contexts"]["groups"]][0] == "Highest"
    assert len(blocks["contexts"]["groups"][0]["windows"]) == 9
    assert blocks["contexts"]["groups"][0]["windows"][0]["pieces"][1] == HOSTILE
    assert sum(blocks["histogram"]["series"][0]["counts"]) == record.fired == 200
    assert [item["value"] for item in blocks["promoted"]["items"]] == [1.5, 0.5]
    assert blocks["neighbours"]["rows"][0]["feature"]["href"].startswith("#/feature?")
    claimed = {block["id"]: block for block in server.get("/api/pages/feature?feature=latent.tiny.3").json["blocks"]}
    assert claimed["claims"]["cards"][0]["id"] == made.tested


def links_of(value):
    """All addresses of pages in a document."""
    if isinstance(value, dict):
        yield from (value[key] for key in ("href",) if str(value.get(key, "")).startswith("#/"))
        for item in value.values():
            yield from links_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from links_of(item)


def test_no_link_of_any_page_leads_nowhere(server, made):
    """A few of every kind: the page, and which arguments it is given; of searches, each way."""
    kinds = {}
    for name, query in addresses(made):
        for href in links_of(server.get(f"/api/pages/{name}?{query}").json):
            page, _, given = href.removeprefix("#/").partition("?")
            words = dict(parse_qsl(given))
            kinds.setdefault((page, *sorted(words), words.get("how")), []).append((href, name))
    assert {"fires", "promoted", "suppressed"} <= {kind[-1] for kind in kinds}
    for found in kinds.values():
        for href, name in found[:: max(1, len(found) // 3)]:
            answer = server.get(f"/api/pages/{href.removeprefix('#/')}")
            assert answer.status == 200, (name, href, answer.body)


def test_a_search_for_a_token_finds_the_feature_whose_page_links_to_it(server, made):
    blocks = {block["id"]: block for block in server.get("/api/pages/feature?feature=latent.tiny.4").json["blocks"]}
    for name in ("tokens", "promoted", "suppressed"):
        for item in blocks[name]["items"]:
            found = server.get(f"/api/pages/{item['href'].removeprefix('#/')}").json["blocks"]
            hits = next(block for block in found if block["id"] == "hits")["rows"]
            assert "latent 4" in [row["feature"]["value"] for row in hits], (name, item)


def test_a_search_keeps_to_the_verdict_that_is_asked_for(server, made):
    from assay.atlas.store import Atlas

    verdict = Atlas(made.path).verdict(made.tested).verdict
    for asked, wanted in ((verdict, ["latent 3"]), ("not tested", [])):
        found = server.get(f"/api/pages/search?query=yes&how=promoted&verdict={asked.replace(' ', '%20')}").json["blocks"]
        hits = next(block for block in found if block["id"] == "hits")
        assert [row["feature"]["value"] for row in hits["rows"]] == wanted
        done = server.post("/api/verbs/find_features", {"query": "yes", "how": "promoted", "verdict": asked}).json
        assert [hit["feature"].rpartition(".")[2] for hit in done["record"]["hits"]] == [name.split()[1] for name in wanted]
    assert {block["id"] for block in found} >= {"other-ways"}  # nothing was found: how else to look


def test_two_sets_of_the_same_units_are_compared_by_name(server, made):
    answer = server.get(f"/api/pages/compare?a={made.older}&b={made.set}")
    blocks = {block["id"]: block for block in answer.json["blocks"]}
    counts = {item["label"]: item["value"] for item in blocks["pairs"]["items"]}
    assert (counts["pairs"], counts["only in the first"], counts["only in the second"]) == (25, 0, 5)
    changed = {row["a"]["value"]: row for row in blocks["changed"]["rows"]}
    assert (changed["latent 1"]["da"], changed["latent 1"]["db"]) == (0.004, 0.002)
    assert "density" in changed["latent 1"]["changes"] and set(changed) == {"latent 1", "latent 3"}
    assert "verdict" in changed["latent 3"]["changes"]  # only one of the two has a claim
    assert len(blocks["only-second"]["rows"]) == 5
    assert server.get("/api/pages/compare").json["intro"] == answer.json["intro"]  # the newest and the one before


def test_the_claim_page_has_the_verdict_of_the_store(server, made):
    from assay.atlas.store import Atlas

    verdict = Atlas(made.path).verdict(made.tested)
    card = server.get(f"/api/pages/claim?claim={made.tested}").json["blocks"][0]["cards"][0]
    assert (card["verdict"], card["sentence"]) == (verdict.verdict, verdict.sentence)
    assert len(card["gates"]) == len(verdict.gates) and card["shows_not"]
    assert card["rerun"] == {"verb": "claim_replay", "arguments": {"claim": made.tested}}
    stated = server.get(f"/api/pages/claim?claim={made.stated}").json["blocks"][0]["cards"][0]
    assert stated["verdict"] == "not tested" and stated["rerun"]["verb"] == "claim_test"


def test_a_claim_whose_records_were_edited_is_said_to_be_tampered(tmp_path, made):
    from assay.atlas.store import Atlas

    shutil.copytree(made.path, tmp_path / "copy")
    with running(Workspace(tmp_path / "copy")) as client:
        address = f"/api/pages/claim?claim={made.tested}"
        whole = client.get(address).json["blocks"]
        assert whole[0]["id"] == "card" and client.get(address).json["blocks"] == whole  # remembered
        with Atlas(tmp_path / "copy").writing() as db:
            db.execute("UPDATE verdicts SET body = replace(body::VARCHAR, '\"sentence\":\"', '\"sentence\":\"Certainly: ')")
        blocks = client.get(address).json["blocks"]
    assert blocks[0]["id"] == "tampered" and "verdict" in json.dumps(blocks[0])


def test_a_large_record_is_read_once_in_a_block_and_anew_after_a_write(tmp_path, made):
    from assay.atlas.store import Atlas

    shutil.copytree(made.path, tmp_path / "copy")
    store, edit = Atlas(tmp_path / "copy"), "UPDATE verdicts SET body = replace(body::VARCHAR, '\"kind\":\"', '\"kind\":\"x')"
    with store:
        found = store.verdict(made.tested)
        assert found is not None and store.verdict(made.tested) is found
        with store.writing() as db:
            db.execute(edit)
            assert store.verdict(made.tested).kind == f"x{found.kind}"
        assert store.verdict(made.tested).kind == f"x{found.kind}"
        with pytest.raises(ZeroDivisionError), store.writing() as db:
            db.execute(edit)
            assert store.verdict(made.tested).kind == f"xx{found.kind}"
            raise ZeroDivisionError
        assert store.verdict(made.tested).kind == f"x{found.kind}"


@pytest.mark.parametrize(
    "path", ["/api/pages/nothing", "/api/verbs/nothing", "/api/jobs/nothing", "/api/jobs/20260101-000000-00000000",
             "/api/nothing", "/api/pages/claim/export.htm", "/api/pages/..%2f..%2fetc%2fpasswd", "/assets/..%2fserver.py",
             "/static/../server.py"],
)  # fmt: skip
def test_what_there_is_not_is_404(server, path):
    answer = server.post(path) if "/verbs/" in path else server.get(path)
    assert answer.status == 404 and set(answer.error) == {"message", "argument", "hint"}


@pytest.mark.parametrize(
    ("query", "argument"),
    [("", "feature"), ("feature=", "feature"), ("feature=1&feature=2", "address"),
     ("feature=1&other=2", "page feature"), ("feature=" + "x" * 401, "feature")],
)  # fmt: skip
def test_wrong_arguments_are_named(server, query, argument):
    answer = server.get(f"/api/pages/feature?{query}")
    assert answer.status == 400 and answer.error["argument"].startswith(argument), answer.body
    assert "allowed" in answer.error["message"]


@pytest.mark.parametrize(
    ("page", "argument"),
    [("feature?feature=latent.tiny.99", "feature"), ("feature?feature=99999", "feature"), ("feature?feature=1&set=none", "set"),
     ("claim?claim=c-none", "claim"), ("compare?a=zzz", "set"), ("compare?b=zzz", "set"), ("neurons?set=zzz", "set"),
     ("claims?kind=zzz", "claim kind"), ("task?task=zzz", "data"), ("circuit?task=zzz", "data"),
     ("circuit?circuit=zzz", "circuit"), ("graph?graph=zzz", "graph"), ("probe?concept=zzz", "data"),
     ("probe?result=zzz", "result"), ("steer?result=zzz", "result"),
     ("monitor?monitor=zzz", "monitor"), ("monitor?audit=zzz", "audit"), ("live?dictionary=zzz", "dictionary"),
     ("search?query=zzz&how=task", "effect"), ("search?query=zzz&how=circuit", "circuit")],
)  # fmt: skip
def test_what_a_page_names_and_is_not_there_is_404_with_what_there_is(server, page, argument):
    for place in (page, page.replace("?", "/export.html?")):
        answer = server.get(f"/api/pages/{place}")
        assert answer.status == 404 and answer.error["argument"] == argument, answer.body
        assert "allowed" in answer.error["message"] and "zzz" not in answer.error["hint"]


@pytest.mark.parametrize(("verb", "given"), [
    ("feature_show", {"feature": "latent.tiny.99"}), ("verify", {"claim": "c-none"}), ("claim_kinds", {"kind": "zzz"}),
])  # fmt: skip
def test_what_a_verb_names_and_is_not_there_is_404(server, verb, given):
    assert server.post(f"/api/verbs/{verb}", given).status == 404


@pytest.mark.parametrize("sort", ["nothing", "name; DROP TABLE x", "-", "'"])
def test_a_sort_that_is_no_column_is_refused(server, sort):
    from urllib.parse import quote

    assert server.get(f"/api/pages/search?sort={quote(sort)}").status == 400


# verbs, roles, log -------------------------------------------------------------------------------


def test_verbs_are_listed_with_what_this_role_may_do(server):
    listed = {verb["name"]: verb for verb in server.get("/api/verbs").json["verbs"]}
    assert set(listed) == set(verbs().names())
    assert listed["feature_list"]["allowed"] and not listed["claim_test"]["allowed"]


def test_a_verb_returns_record_and_blocks(server, made):
    found = server.post("/api/verbs/feature_list", {"limit": 5, "sort": "name"}).json
    assert found["record"]["total"] == 30 and len(found["record"]["features"]) == 5
    assert found["blocks"][0]["type"] == "table"
    shown = server.post("/api/verbs/feature_show", {"feature": "latent.tiny.2"}).json
    assert shown["record"]["name"] == "latent.tiny.2" and len(shown["blocks"]) > 5


def test_a_role_that_is_too_low_is_refused_and_logged_and_changes_nothing(server, made):
    before = server.get("/api/pages/claims").json["counts"]
    answer = server.post("/api/verbs/claim_test", {"claim": made.stated})
    assert answer.status == 403 and "intervene" in answer.error["message"]
    entry = list(permissions.entries(made.path))[-1]
    assert entry["action"] == "refused: claim_test" and entry["body"]["arguments"] == {"claim": made.stated}
    assert entry["body"]["actor"] == "tester"
    assert server.get("/api/pages/claims").json["counts"] == before


def test_every_call_of_a_verb_is_in_the_audit_log(server, made):
    server.post("/api/verbs/feature_list", {"limit": 7})
    entry = list(permissions.entries(made.path))[-1]
    assert (entry["action"], entry["body"]) == ("feature_list", {"actor": "tester", "arguments": {"limit": 7}})
    assert permissions.verify(made.path) == []


def test_modify_wants_a_reason(tmp_path):
    def run(workspace, arguments, report):
        return {"record": {"did": True}, "blocks": []}

    from assay.app.arguments import schema, string

    VERBS._items["change_test"] = Verb("change_test", "modify", "Test.", schema((), reason=string("Why.")), run)
    try:
        with running(Workspace(tmp_path / "a", role="modify")) as client:
            assert client.post("/api/verbs/change_test").status == 400
            assert client.post("/api/verbs/change_test", {"reason": "because the test says so"}).json["record"] == {"did": True}
        with running(Workspace(tmp_path / "a", role="intervene")) as client:
            assert client.post("/api/verbs/change_test", {"reason": "because the test says so"}).status == 403
    finally:
        del VERBS._items["change_test"]
    assert [entry["why"] for entry in permissions.entries(tmp_path / "a")] == ["", "because the test says so", ""]


def test_a_defect_is_a_500_without_its_insides(tmp_path, capsys):
    from assay.app.arguments import schema

    def run(workspace, arguments, report):
        raise RuntimeError("the secret inside")

    VERBS._items["defect_test"] = Verb("defect_test", "read", "Test.", schema(), run)
    try:
        with running(Workspace(tmp_path / "a")) as client:
            answer = client.post("/api/verbs/defect_test")
    finally:
        del VERBS._items["defect_test"]
    assert answer.status == 500 and b"secret" not in answer.body and "RuntimeError" in answer.error["message"]
    assert "the secret inside" in capsys.readouterr().err


def test_models_of_others_choosing_are_never_loaded(server):
    for name in ("gpt2", "/etc", "../x", "hub:evil/model", "http://evil"):
        answer = server.post("/api/verbs/live", {"text": "x", "model": name})
        assert answer.status == 400 and answer.error["argument"] == "model", answer.body


def test_pages_and_verbs_have_what_a_list_of_them_shows():
    for page in pages():
        assert page.title and page.summary.endswith((".", "?", "!")), page.name
        assert page.listed or page.parameters.get("required") or page.name == "feature"
    for verb in verbs():
        assert verb.summary and verb.role in permissions.ROLES
        assert verb.parameters["additionalProperties"] is False
        assert all(part["description"] for part in verb.parameters["properties"].values()), verb.name
