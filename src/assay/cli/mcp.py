"""`assay mcp`: a server for AI agents."""

import click

from assay.cli.common import Common, common_options
from assay.errors import bad_argument


@click.command()
@click.option("--model", "name", default=None, metavar="MODEL", help="The model that is meant when a call names none.")
@click.option("--allow", default=None, metavar="ROLE", help="read, intervene or modify. Default: intervene, or ASSAY_ALLOW.")
@click.option("--actor", default="agent", show_default=True, metavar="NAME", help="Who is written into the audit log.")
@click.option("--dtype", default="float32", show_default=True, help="float32, bfloat16 or float16")
@click.option("--http", is_flag=True, help="Streamable HTTP on 127.0.0.1 instead of standard input and output.")
@click.option("--port", default=0, show_default=True, type=click.IntRange(0, 65535), help="With --http; 0: any that is free.")
@click.option("--token", default=None, envvar="ASSAY_MCP_TOKEN", help="With --http: what clients must send; better given as"
              " ASSAY_MCP_TOKEN. Default: a new one, which is printed.")
@common_options
def mcp(
    common: Common, name: str | None, allow: str | None, actor: str, dtype: str, http: bool, port: int, token: str | None
) -> None:
    """Serve a Model Context Protocol client: an AI agent that investigates a model.

    Its tools are the verbs of the app, with the same roles, ledger and audit log. It explores discover and tune; confirm and
    ood are read by testing claims, and charged. Seeds are arguments of the tools.

    A client that starts servers itself is told the command: assay mcp --atlas DIR --model MODEL. With --http, --json FILE gets
    the address and the token once the server listens.
    """
    from assay.app import mcp as server
    from assay.app.workspace import Workspace
    from assay.permissions import granted_role

    if common.json_to and not http:
        raise bad_argument("--json", common.json_to, "nothing without --http", "Standard output carries the protocol.")
    workspace = Workspace(common.atlas, name, granted_role(allow), actor, device=common.device, dtype=dtype)
    if not http:
        server.serve_stdio(workspace)
        return
    from assay.app.security import token_for

    secret = token_for("127.0.0.1", token)

    def ready(address: str) -> None:
        record = {"address": address, "token": secret, "role": workspace.role, "atlas": str(common.atlas), "model": name}
        common.emit(record, lambda: f"{address}\nAuthorization: Bearer {secret}")

    server.serve_http(workspace, secret, port, ready)
