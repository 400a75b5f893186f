"""The command line. Nothing heavy is imported before a command runs."""

from typing import Annotated

import typer

from fmprobe import __version__
from fmprobe.cli.atlas import atlas
from fmprobe.cli.cache import cache
from fmprobe.cli.demo import demo
from fmprobe.cli.fit_decoder import fit_decoder
from fmprobe.cli.help import Command
from fmprobe.cli.models import models
from fmprobe.cli.output import with_output
from fmprobe.cli.push import push
from fmprobe.cli.report import report
from fmprobe.registry import probes
from fmprobe.sharing import together
from fmprobe.stopping import listen

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Vision foundation models as dynamical systems: attractors of the latent map encode(decode(z))."""


asked = {name: command for probe in probes() for name, command in probe.COMMANDS.items()}
kept = {"fit-decoder": fit_decoder, "report": report, "push": push, "models": models, "cache": cache}
for name, command in ({"demo": demo} | asked | {"atlas": atlas} | kept).items():
    app.command(name, cls=Command)(with_output(command, draws=name in {"demo", *asked}))


def main() -> None:
    """Run the command asked for; it ends, and exits, as `sharing.together` says."""
    listen()
    with together():
        app()
