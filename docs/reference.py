"""A page of the site for every package of assay: what its modules say of themselves. mkdocs calls this, nothing is kept."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

SOURCE = Path(__file__).parent.parent / "src" / "assay"
TOP = "assay"


def packages() -> dict[str, list[str]]:
    """Package -> its modules; modules that are in none stand under `assay`. Private ones and the command line are left out."""
    found: dict[str, list[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = [part.removesuffix(".py") for part in path.relative_to(SOURCE).parts]
        if parts[0] in ("cli", "__main__", "__init__") or parts[-1] == "__init__" or parts[:2] == ["app", "web"]:
            continue
        found.setdefault(parts[0] if len(parts) > 1 else TOP, []).append(".".join([TOP, *parts]))
    return found


def text(name: str, modules: list[str]) -> str:
    """The page of a package."""
    return "\n\n".join([f"# {TOP if name == TOP else f'{TOP}.{name}'}", *(f"::: {module}" for module in modules)])


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """A menu for the pages."""
    config.nav = [*(config.nav or []), {"API": [f"reference/{name}.md" for name in packages()]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages themselves."""
    for name, modules in packages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text(name, modules)))
    return files
