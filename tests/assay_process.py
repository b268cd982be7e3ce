"""`assay` in a process of its own, without the seconds that importing the libraries of others takes.

A server, one for each process that runs tests and each python, imports these libraries and nothing of Assay; every command
is forked from it, so each loads its own modules, starts from nothing, and ends as it does when it is typed.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import traceback
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

LIBRARIES = ("torch", "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama", "duckdb",
             "scipy.stats", "scipy.optimize", "scipy.sparse", "matplotlib.figure", "matplotlib.backends.backend_agg",
             "matplotlib.backends.backend_svg", "rich.console", "click", "safetensors.torch", "jaxtyping")  # fmt: skip


def run(*words: str, cwd: str | Path = ".", python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """`assay WORDS` in a folder, with the `assay` that a python has: what `subprocess.run` gives of it."""
    with TemporaryDirectory() as place:
        files = [str(Path(place) / name) for name in ("out", "err")]
        request = {"words": words, "cwd": str(Path(cwd).resolve()), "env": dict(os.environ), "files": files}
        server = _server(python)
        assert server.stdin and server.stdout
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(words, code, *(Path(file).read_text() for file in files))


@cache
def _server(python: str) -> subprocess.Popen[str]:
    server = subprocess.Popen([python, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.kill)
    return server


def serve() -> None:
    """A fork for every line of standard input, its exit code as a line of standard output."""
    sys.path.pop(0)  # this folder: a command sees what is installed, nothing that only the tests have
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # what is imported is shared with every fork, as long as nobody writes to it
    for line in sys.stdin:
        if not (child := os.fork()):
            become(json.loads(line))
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


def become(request: dict[str, Any]) -> NoReturn:
    """This process is `assay` now."""
    code: Any = 0
    try:
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, file in enumerate(request["files"], 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), number)
        sys.argv = ["assay", *request["words"]]
        runpy.run_module("assay", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # the end of this process, told as the interpreter would: it must not go on as the server
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
