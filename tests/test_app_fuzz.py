"""The API against its own description: arguments nobody would think of get no defect and no answer that is not described.

Verbs that run a model, and long ones, are replaced by stand-ins with their own schemas: what is tested is the road to them.
"""

import dataclasses

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import CHECKS

from app_atlas import shared_app_atlas
from app_server import TOKEN, running
from assay.app.openapi import describe
from assay.app.verbs import VERBS, verbs
from assay.app.workspace import Workspace

pytestmark = pytest.mark.whole

REAL = ("feature_list", "feature_show", "feature_sets", "find_features", "claim_kinds", "tasks", "models", "verify")
NAMES = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
         "negative_data_rejection", "unsupported_method", "response_headers_conformance")  # fmt: skip
schemathesis.checks.load_all_checks()
EXAMPLES = 6
SPEC = {**describe(), "security": []}  # the token is always there; what happens without it is tested elsewhere


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made, real = shared_app_atlas(tmp_path_factory), dict(VERBS._items)
    for name in set(verbs().names()) - set(REAL):
        stand_in = dataclasses.replace(VERBS.get(name), run=lambda workspace, arguments, report: {"record": 1, "blocks": []})
        VERBS._items[name] = stand_in
    try:
        with running(Workspace(made.path, role="intervene", loaded=made.model)) as client:
            yield client
    finally:
        VERBS._items.update(real)


def operations():
    """Every operation of the description. Exports but one take the road of their pages; events end only with their job."""
    left_out = ("/events", "/export.html")
    return [(path, method) for path, found in SPEC["paths"].items() for method in found
            if not path.endswith(left_out) or path == "/api/pages/feature/export.html"]  # fmt: skip


@pytest.mark.parametrize(("path", "method"), operations())
def test_no_defect_and_nothing_undescribed(server, path, method):
    loaded = schemathesis.openapi.from_dict(SPEC)
    loaded.config.update(base_url=server.url)
    operation = loaded[path][method.upper()]
    checks = [CHECKS.get_one(name) for name in NAMES]
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]

    @hypothesis.settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
                         suppress_health_check=list(hypothesis.HealthCheck))  # fmt: skip
    @hypothesis.given(hypothesis.strategies.data())
    def run(data):
        mode = data.draw(hypothesis.strategies.sampled_from(modes))
        try:
            case = data.draw(operation.as_strategy(generation_mode=mode))
        except hypothesis.errors.Unsatisfiable:
            return
        case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"}, checks=checks)

    run()


def test_the_fuzzer_finds_what_it_is_for(server):
    """A description that promises another answer is caught."""
    spec = describe()
    spec["paths"]["/api/pages/glossary"]["get"]["responses"] = {"204": {"description": "Nothing."}}
    loaded = schemathesis.openapi.from_dict(spec)
    loaded.config.update(base_url=server.url)
    case = loaded["/api/pages/glossary"]["GET"].Case()
    with pytest.raises(schemathesis.core.failures.FailureGroup, match="Undocumented status code"):
        case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"}, checks=[CHECKS.get_one("status_code_conformance")])
