"""The API described in OpenAPI 3.1, made from what it does: registered pages and verbs, and the classes of blocks.

Every page and every verb is a path of its own, so that its arguments are described as exactly as they are checked.
"""

from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

from pydantic import TypeAdapter

from assay.app.blocks import AnyBlock, DocumentRecord
from assay.app.documents import Page, pages
from assay.app.verbs import Verb, verbs

Spec = dict[str, Any]
PLACE = "#/components/schemas/"
WORDS = {
    400: "An argument is missing, unknown or not allowed.", 401: "The token is missing or wrong.",
    403: "Another origin, or a role that is too low.", 404: "There is no such page, verb, job or record.",
    409: "The atlas is in use by another process, or its records do not hold.", 413: "The body is too large.",
    415: "The body is not called JSON.", 421: "The server does not go by that name.",
    422: "It cannot be done with this model or these data.", 429: "Too many jobs are waiting.", 500: "A defect.",
    503: "The model is busy with another job.",
}  # fmt: skip
ALWAYS = (401, 403, 421, 500)


def describe() -> Spec:
    """The whole description."""
    paths: Spec = {"/api/pages": {"get": _get("pages", "Which pages there are.", _ref("Pages"), (), ())}}
    for page in pages():
        paths[f"/api/pages/{page.name}"] = {"get": _page(page)}
        paths[f"/api/pages/{page.name}/export.html"] = {"get": _page(page, export=True)}
    paths["/api/verbs"] = {"get": _get("verbs", "What can be done.", _ref("Verbs"), (), ())}
    for verb in verbs():
        paths[f"/api/verbs/{verb.name}"] = {"post": _verb(verb)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Assay", "version": metadata.version("assay"), "license": {"name": "Apache-2.0"},
                 "description": "Pages as typed documents, verbs, and jobs, of one atlas. Every call carries the token that"
                                " `assay app` prints."},
        "security": [{"token": []}], "paths": {**paths, **_jobs(), **_self()},
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}, "schemas": _schemas()},
    }  # fmt: skip


def _page(page: Page, export: bool = False) -> Spec:
    schema = page.parameters
    parameters = [_query(name, part, name in schema.get("required", ())) for name, part in schema["properties"].items()]
    refusals = (400, 404, 409, 422, 503)
    if export:
        found = _get(f"export_{page.name}", f"{page.title}, as one file.", {"type": "string"}, parameters, refusals)
        found["responses"]["200"]["content"] = {"text/html": {"schema": {"type": "string"}}}
        return found
    return _get(f"page_{page.name}", page.summary, _ref("DocumentRecord"), parameters, refusals)


def _query(name: str, part: Mapping[str, Any], required: bool) -> Spec:
    """An argument of an address. A list there is one text with commas."""
    many = isinstance(part["type"], list)
    schema = {"type": "string", "maxLength": part["maxLength"]} if many else {
        key: value for key, value in part.items() if key != "description"}  # fmt: skip
    return {"name": name, "in": "query", "required": required, "description": part["description"], "schema": schema}


def _verb(verb: Verb) -> Spec:
    """A verb. What it needs beyond its schema (a claim that is there, a model that does the task) it refuses in words."""
    result = {"type": "object", "properties": {"job": {"type": "string"}}, "required": ["job"]} if verb.long else _ref("Result")
    role = f" Role: {verb.role}." + (" Reads sealed data, which is charged." if verb.spends else "")
    body = {"required": True, "content": {"application/json": {"schema": verb.parameters}}}
    refusals = (400, 404, 409, 413, 415, 422, 429, 503)
    found = {"operationId": f"verb_{verb.name}", "summary": verb.summary, "description": verb.summary + role, "tags": ["verbs"],
             "requestBody": body, "responses": _responses(result, refusals)}  # fmt: skip
    return found


def _jobs() -> Spec:
    pattern = {"type": "string", "pattern": "^[0-9]{8}-[0-9]{6}-[0-9a-f]{8}$"}
    name = {"name": "id", "in": "path", "required": True, "schema": pattern}
    stream = _get("job_events", "Progress as server-sent events.", {"type": "string"}, [name], (404, 409))
    stream["responses"]["200"]["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
    acts = {f"/api/jobs/{{id}}/{what}": {"post": {
        "operationId": f"job_{what}", "summary": words, "tags": ["jobs"], "parameters": [name],
        "responses": _responses(_ref("Job"), (400, 404, 409, 413, 429))}}
        for what, words in (("cancel", "Ask a job to stop."), ("resume", "Let a stopped job go on."))}  # fmt: skip
    return {
        "/api/jobs": {"get": _get("jobs", "Jobs, newest first.", _ref("Jobs"), (), (409,))},
        "/api/jobs/{id}": {"get": _get("job", "A job, with its result when it is done.", _ref("Job"), [name], (404, 409))},
        "/api/jobs/{id}/events": {"get": stream}, **acts,
    }  # fmt: skip


def _self() -> Spec:
    return {"/api/openapi.json": {"get": _get("openapi", "This description.", {"type": "object"}, (), ())}}


def _get(name: str, summary: str, schema: Spec, parameters: Iterable[Spec], refusals: Iterable[int]) -> Spec:
    given = list(parameters)
    tag = "jobs" if name.startswith("job") else "pages"
    found: Spec = {"operationId": name, "summary": summary, "tags": [tag], "responses": _responses(schema, refusals)}
    return {**found, "parameters": given} if given else found


def _responses(schema: Spec, refusals: Iterable[int]) -> Spec:
    refused = {"application/json": {"schema": _ref("Refusal")}}
    others = {str(code): {"description": WORDS[code], "content": refused} for code in sorted({*refusals, *ALWAYS})}
    return {"200": {"description": "Done.", "content": {"application/json": {"schema": schema}}}, **others}


def _ref(name: str) -> Spec:
    return {"$ref": PLACE + name}


def _schemas() -> Spec:
    whole = TypeAdapter(DocumentRecord).json_schema(ref_template=PLACE + "{model}")
    block = TypeAdapter(AnyBlock).json_schema(ref_template=PLACE + "{model}")
    found = {**whole.pop("$defs"), **block.pop("$defs")}
    text, flag, anything = {"type": "string"}, {"type": "boolean"}, {"type": "object"}
    job = {
        **{name: text for name in ("id", "verb", "state", "message", "made", "started", "ended", "role", "actor")},
        "arguments": anything, "done": {"type": "integer"}, "total": {"type": "integer"},
        "error": {"anyOf": [_ref("Fault"), {"type": "null"}]}, "result": _ref("Result"),
    }  # fmt: skip
    maybe = {"type": ["string", "null"]}
    told = {**_object(modified=flag, what=text, note=text), "description": "There where the model was edited or changed; `also`"
            " is a second one, of a model that was changed before it was edited."}  # fmt: skip
    page = {"page": text, "title": text, "summary": text, "group": text, "listed": flag, "parameters": anything}
    verb = {"name": text, "role": {"enum": ["read", "intervene", "modify"]}, "summary": text, "long": flag, "spends": flag,
            "allowed": flag, "parameters": anything}  # fmt: skip
    return {
        **found, "DocumentRecord": whole, "AnyBlock": block,
        "Fault": _object(message=text, argument=text, hint=text), "Refusal": _object(error=_ref("Fault")),
        "Result": {"type": "object", "properties": {"record": {}, "blocks": _list(_ref("AnyBlock")), "disclosure": told},
                   "required": ["record", "blocks"]},
        "Job": {"type": "object", "properties": job, "required": [name for name in job if name != "result"]},
        "Jobs": _object(jobs=_list(_ref("Job"))),
        "Pages": _object(pages=_list(_object(**page)), model=maybe, role=text, atlas=text, version=text),
        "Verbs": _object(verbs=_list(_object(**verb))),
    }  # fmt: skip


def _object(**properties: Spec) -> Spec:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: Spec) -> Spec:
    return {"type": "array", "items": items}
