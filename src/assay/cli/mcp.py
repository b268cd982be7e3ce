"""`assay mcp`: a server for AI agents."""

from pathlib import Path

import click


@click.command()
@click.option("--atlas", default="./atlas", show_default=True, metavar="DIR", help="Where results, claims and logs are kept.")
@click.option("--model", "name", default=None, metavar="MODEL", help="The model that is meant when a call names none.")
@click.option("--allow", default=None, metavar="ROLE", help="read, intervene or modify. Default: intervene, or ASSAY_ALLOW.")
@click.option("--actor", default="agent", show_default=True, metavar="NAME", help="Who is written into the audit log.")
@click.option("--device", default="cpu", show_default=True, help="As torch names it.")
@click.option("--dtype", default="float32", show_default=True, help="float32, bfloat16 or float16")
@click.option("--http", is_flag=True, help="Streamable HTTP on 127.0.0.1 instead of standard input and output.")
@click.option("--port", default=0, show_default=True, type=click.IntRange(0, 65535), help="With --http; 0: any that is free.")
@click.option("--token", default=None, help="With --http: what clients must send. Default: a new one, which is printed.")
def mcp(
    atlas: str, name: str | None, allow: str | None, actor: str, device: str, dtype: str, http: bool, port: int,
    token: str | None,
) -> None:  # fmt: skip
    """Serve a Model Context Protocol client: an AI agent that investigates a model.

    Its tools are the verbs of the app, with the same roles, ledger and audit log. It explores discover and tune; confirm and
    ood are read by testing claims, and charged.

    A client that starts servers itself is told the command: assay mcp --atlas DIR --model MODEL
    """
    from assay.app import mcp as server
    from assay.app.workspace import Workspace
    from assay.permissions import granted_role

    workspace = Workspace(Path(atlas), name, granted_role(allow), actor, device=device, dtype=dtype)
    if not http:
        server.serve_stdio(workspace)
        return
    from assay.app.security import token_for

    secret = token_for("127.0.0.1", token)
    server.serve_http(workspace, secret, port, lambda address: click.echo(f"{address}\nAuthorization: Bearer {secret}"))
