"""Help of operators' commands."""

from typing import Any

from typer.core import TyperGroup


class Commands(TyperGroup):
    """A group of commands that lists each with the first sentence of its help, whole: click would cut it at the line's
    end."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None and not command.short_help:
            start, stop, _ = " ".join((command.help or "").split()).partition(". ")
            command.short_help = start + stop.rstrip()
        return command
