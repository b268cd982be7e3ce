"""`assay app`: the web app and its API."""

import socket
import webbrowser
from typing import Any

import click

from assay.cli.common import Common, common_options
from assay.errors import bad_argument

PORT = 8421


@click.command()
@click.option("--model", "name", metavar="MODEL", help="The model to work with: hub id, folder, *.gguf or a packaged name.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen. Anything but loopback wants --token.")
@click.option("--port", default=PORT, show_default=True, type=click.IntRange(0, 65535), help="0: any free one.")
@click.option("--token", default=None, envvar="ASSAY_APP_TOKEN", help="What every call must carry; better given as"
              " ASSAY_APP_TOKEN. Default: a new one, in the address that is printed.")  # fmt: skip
@click.option("--name", "names", multiple=True, metavar="NAME", help="Another host name it is reached by, as behind a proxy.")
@click.option("--allow", default=None, metavar="ROLE", help="read, intervene or modify. Default: ASSAY_ALLOW, else intervene.")
@click.option("--dtype", default="float32", show_default=True, help="float32, bfloat16 or float16")
@click.option("--no-browser", is_flag=True, help="Do not open a browser.")
@common_options
def app(common: Common, name: str | None, host: str, port: int, token: str | None, names: tuple[str, ...], allow: str | None,
        dtype: str, no_browser: bool) -> None:  # fmt: skip
    """Open the atlas in a browser: what is known, what is not, and everything that can be done about it.

    Works offline and on an empty atlas. Whoever has the address has the role; it is for this machine unless --host says
    otherwise. With --json FILE the address is written there once the server listens.
    """
    from assay.app.security import token_for
    from assay.app.server import make_app
    from assay.app.workspace import Workspace
    from assay.permissions import granted_role

    role, secret = granted_role(allow), token_for(host, token)
    listening = _listen(host, port)
    workspace = Workspace(common.atlas, name, role, "app", device=common.device, dtype=dtype)
    if name is not None:
        _check(name)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}"
    url = f"{address}/#token={secret}"
    record = {"url": url, "address": address, "token": secret, "role": role, "atlas": str(common.atlas), "model": name}
    _serve(common, workspace, make_app(workspace, secret, host, names), listening, record, not no_browser)


def _check(name: str) -> None:
    """Raises ModelError now, not on the first page, for a model that is not there."""
    from assay.model.find import find_model

    find_model(name)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UsageError for a port that is taken or a host that is none."""
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(place)
        found.listen(128)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise bad_argument("--host, --port", f"{host}:{port} ({why})", "an address of this machine that is free",
                           "For any free port: --port 0") from error  # fmt: skip
    return found


def _serve(common: Common, workspace: Any, made: Any, listening: socket.socket, record: Any, browse: bool) -> None:
    import uvicorn

    workspace.log("app start", {"address": record["address"], "role": workspace.role})
    config = uvicorn.Config(made, log_level="warning", access_log=False, server_header=False, date_header=False, lifespan="on",
                            timeout_graceful_shutdown=2, h11_max_incomplete_event_size=64 << 10)  # fmt: skip

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            common.emit(record, lambda: f"Assay: {record['url']}\nRole: {record['role']}. Ctrl-C ends it.")
            if browse:
                webbrowser.open(record["url"])

    server = Server(config)
    server.run(sockets=[listening])
    if server.started:  # only Ctrl-C ends it; its signal, given on at the very end, can be lost
        raise KeyboardInterrupt
