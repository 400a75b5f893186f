"""The command line. Nothing heavy is imported before a command runs."""

import typer

from fmprobe.cli.demo import demo
from fmprobe.cli.fit_decoder import fit_decoder
from fmprobe.cli.models import models
from fmprobe.cli.output import with_output
from fmprobe.cli.report import report
from fmprobe.registry import probes
from fmprobe.sharing import together
from fmprobe.stopping import listen

app = typer.Typer(
    help="Vision foundation models as dynamical systems: attractors of the latent map encode(decode(z)).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
asked = {name: command for probe in probes() for name, command in probe.COMMANDS.items()}
for name, command in (
    {"demo": demo} | asked | {"fit-decoder": fit_decoder, "report": report, "models": models}
).items():
    app.command(name)(with_output(command))


def main() -> None:
    """Run the command asked for; it ends, and exits, as `sharing.together` says."""
    listen()
    with together():
        app()
