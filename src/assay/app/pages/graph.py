"""Attribution graphs: one prompt, its latents and what they make of each other; a node can be changed in the model."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assay.app.arguments import string
from assay.app.blocks import LinkItem, href, links, text
from assay.app.documents import Made, page
from assay.app.forms import form_of

if TYPE_CHECKING:
    from assay.app.workspace import Workspace

NEWEST = 20


@page("graph", "Attribution graphs", "Which latents made the model say what it says next, on one prompt.", group="Model",
      graph=string("A graph by id.", longest=64), node=string("A node, to see what feeds it.", longest=100))  # fmt: skip
def graph(workspace: "Workspace", arguments: Mapping[str, Any]) -> Made:
    """One graph with its actions, or all of them and the form that makes another."""
    from assay.app.verbs.trace import graph_blocks, node_blocks, read_graph
    from assay.atlas.features import graphs

    rows = [] if workspace.is_empty else graphs(workspace.store)[::-1][:NEWEST]
    items: list[LinkItem] = [{"label": row["prompt"] or row["id"], "href": href("graph", graph=row["id"]),
              "note": f"{row['model']}, {row['created'][:16].replace('T', ' ')}"} for row in rows]  # fmt: skip
    listed = [links("graphs", items, title="Graphs of this atlas")] if items else []
    trace = form_of("trace-form", "trace", "Trace", ("prompt", "logits", "nodes", "validate"), title="Trace a prompt",
                    values={"prompt": "The capital of France is"}, help="attribution graph")  # fmt: skip
    name = arguments.get("graph")
    if not name:
        said = [] if items else [text("graphs-empty", "No graph was traced yet. Trace a prompt below, or run: assay trace MODEL"
                                      ' --prompt "TEXT"')]  # fmt: skip
        return Made([*said, *listed, trace], empty=not items)
    held = read_graph(workspace, name)
    nodes = node_blocks(held, arguments["node"]) if "node" in arguments else []
    top = [held.nodes[at].name for at in held.influence.argsort(descending=True).tolist() if held.nodes[at].kind == "latent"]
    change = [form_of("intervene-form", "intervene", "Change it", ("node", "factor"), fixed={"graph": name},
                      values={"node": arguments.get("node", top[0])}, title="Change a latent in the model",
                      note="What the graph predicts, beside what the model does.", help="intervention")
              ] if top else []  # fmt: skip
    return Made([*graph_blocks(held, name), *nodes, *change, *listed, trace], title=f"“{held.prompt or ''.join(held.texts)}”")
