"""What --help shows of a command: its options in groups, as plain text that can be piped and copied."""

from typing import Any

from typer.core import TyperCommand

from fmprobe.runs.options import Panel


class Command(TyperCommand):
    """A command whose options are shown by their `rich_help_panel`, those of its own before those that many share."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and the groups of options."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is None:
                continue
            if parameter.param_type_name == "argument":
                groups.setdefault("Arguments", []).append((str(parameter.metavar), record[1]))
            else:
                panel = getattr(parameter, "rich_help_panel", None) or Panel.OUTPUT  # --help has none
                groups.setdefault(panel, []).append(record)
        for name in (*(name for name in groups if name not in Panel.LAST), *Panel.LAST):
            if name in groups:
                with formatter.section(name):
                    formatter.write_dl(groups[name])
