"""Write docs/commands.md from the commands' own help. Run: make docs"""

from pathlib import Path

import click

from assay.cli.main import NOUNS, cli


def page() -> str:
    """Every command with its help text."""
    lines = ["# Commands", "", "Made by `make docs` from the commands themselves.", ""]
    for path, command in sorted(walk(cli, ())):
        context = click.Context(command, info_name=" ".join(("assay", *path)), terminal_width=110, max_content_width=110)
        lines += [f"## assay {' '.join(path)}", "", "```", command.get_help(context).rstrip(), "```", ""]
    return "\n".join(lines)


def walk(group: click.Group, path: tuple[str, ...]):
    """All commands below a group, with their words."""
    context = click.Context(group)
    for name in NOUNS if group is cli else group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from walk(command, (*path, name))
        elif command is not None:
            yield (*path, name), command


if __name__ == "__main__":
    Path(__file__).with_name("commands.md").write_text(page())
