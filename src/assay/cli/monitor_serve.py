"""`assay monitor serve`: an endpoint that clients of OpenAI can call, with monitors on."""

from pathlib import Path
from typing import Any

import click

from assay.cli.app import _listen
from assay.cli.common import Common, common_options, model_options
from assay.errors import bad_argument

PORT = 8422
GRACE = 10  # seconds in which replies may finish when the server ends


@click.command()
@click.argument("name", metavar="MODEL")
@click.option("--monitor", "monitors", multiple=True, metavar="FILE", help="A monitor to keep on; may be given again.")
@click.option("--on-alert", "action", default="log", show_default=True, help="log, block (end the reply) or steer.")
@click.option("--unit", "units", multiple=True, default=("reply",), show_default=True,
              help="What may alert: token, segment, reply, conversation.")  # fmt: skip
@click.option("--judge", multiple=True, default=("reply",), show_default=True, help="What is judged: reply, prompt.")
@click.option("--direction", metavar="FILE", help="With --on-alert steer: a saved direction.")
@click.option("--mode", default="project_out", show_default=True, help="add, clamp, project_out, cap or floor.")
@click.option("--strength", default=1.0, show_default=True, help="A dose, as for assay steer; of project_out a share.")
@click.option("--webhook", metavar="URL", help="Where alerts are sent as JSON, without text.")
@click.option("--log", "folder", metavar="DIR", help="Of the hash-chained log. Default: serving in the atlas.")
@click.option("--keep-text", is_flag=True, help="Keep prompts and replies in the log; without it their hashes.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen. Anything but loopback wants --token.")
@click.option("--port", default=PORT, show_default=True, type=click.IntRange(0, 65535), help="0: any free one.")
@click.option("--token", default=None, envvar="ASSAY_SERVE_TOKEN", help="The key that clients must have; better given as"
              " ASSAY_SERVE_TOKEN. Default: a new one, which is printed.")  # fmt: skip
@click.option("--name", "names", multiple=True, metavar="NAME", help="Another host name it is reached by, as behind a proxy.")
@click.option("--as", "named", metavar="NAME", help="What clients call the model. Default: its own name.")
@click.option("--rows", default=32, show_default=True, type=click.IntRange(1, 512), help="Replies that are made at a time.")
@click.option("--waiting", default=64, show_default=True, type=click.IntRange(0, 4096), help="Replies that may wait; else 429.")
@click.option("--timeout", "seconds", default=300.0, show_default=True, help="Seconds that a request may take.")
@click.option("--max-tokens", "most", default=1024, show_default=True, type=click.IntRange(1), help="Of a reply.")
@click.option("--allow", default=None, metavar="ROLE", help="read, intervene or modify. Default: ASSAY_ALLOW, else intervene.")
@model_options
@common_options
def serve(
    common: Common, name: str, monitors: tuple[str, ...], action: str, units: tuple[str, ...], judge: tuple[str, ...],
    direction: str | None, mode: str, strength: float, webhook: str | None, folder: str | None, keep_text: bool, host: str,
    port: int, token: str | None, names: tuple[str, ...], named: str | None, rows: int, waiting: int, seconds: float,
    most: int, allow: str | None, dtype: str, prepend_bos: bool | None,
) -> None:  # fmt: skip
    """Serve MODEL as an OpenAI-compatible API, with monitors that read every token of prompts and replies.

    Answers say under "assay" what the monitors read and whether anything was steered, blocked or changed. Everything is in a
    hash-chained log, without texts unless --keep-text. With --json FILE the address is written there once it listens.
    """
    from assay import permissions
    from assay.serving.access import token_for
    from assay.serving.start import start
    from assay.serving.worker import Settings

    settings = Settings(action, tuple(units), tuple(judge), rows, waiting, seconds, keep_text)
    secret = token_for(host, token)
    if direction is not None and action != "steer":
        raise bad_argument("--direction", direction, "with --on-alert steer")
    listening = _listen(host, port)
    model = common.load(name, dtype, prepend_bos)
    service = start(model, _monitors(model, monitors), folder or common.atlas / "serving", settings, webhook=webhook, most=most,
                    steering=_steering(model, direction, mode, strength), role=allow, named=named)  # fmt: skip
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}/v1"
    states = [{"monitor": armed.monitor.name, "state": armed.state} for armed in service.worker.readers.armed]
    record = {"address": address, "token": secret, "model": service.served, "action": action, "monitors": states,
              "log": str(service.worker.log.folder)}  # fmt: skip
    try:
        told = {key: value for key, value in record.items() if key != "token"}
        permissions.record(common.atlas, "monitor serve", {"actor": "command line", **told}, service.worker.log.grant)
        _run(common, service.app(secret, host, names), listening, record)
    finally:
        service.close()


def _monitors(model: Any, files: tuple[str, ...]) -> list[Any]:
    """The monitors, each name once. Raises StoreError or UsageError for a file that is none of this model's."""
    from assay.cli.opened import open_monitor

    found = [open_monitor(file, model) for file in files]
    seen = [monitor.name for monitor in found]
    if twice := sorted({name for name in seen if seen.count(name) > 1}):
        raise bad_argument("--monitor", f"two named {twice[0]!r}", "monitors with different names")
    return found


def _steering(model: Any, file: str | None, mode: str, strength: float) -> list[Any]:
    """The edits of a saved direction on what comes; none without one."""
    if file is None:
        return []
    from assay.steer.apply import Steering, edits, residual_norm
    from assay.steer.files import load_direction

    direction = load_direction(Path(file), model)
    steering = Steering(direction, mode, strength, phase="generated")  # type: ignore[arg-type]
    if mode == "project_out":
        return edits(steering)
    from assay.data.ordinary import TEXTS

    return edits(steering, residual_norm(model, direction.site, TEXTS))


def _run(common: Common, app: Any, listening: Any, record: dict[str, Any]) -> None:
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, date_header=False, lifespan="on",
                            timeout_graceful_shutdown=GRACE, h11_max_incomplete_event_size=64 << 10)  # fmt: skip

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            common.emit(record, lambda: _shown(record))

    Server(config).run(sockets=[listening])


def _shown(record: dict[str, Any]) -> str:
    """What is printed once the server listens."""
    lines = [f"Base URL: {record['address']}", f"API key:  {record['token']}", f"Model:    {record['model']}"]
    lines += [f"Monitor:  {each['monitor']}, {each['state']}; on an alert: {record['action']}" for each in record["monitors"]]
    return "\n".join([*lines, f"Log:      {record['log']}", "Ctrl-C ends it."])
