"""The command line: one file a subcommand. Nothing heavy is imported before a command runs."""

import typer

from fmprobe.cli.compare import compare
from fmprobe.cli.demo import demo
from fmprobe.cli.fit_decoder import fit_decoder
from fmprobe.cli.memorization import memorization
from fmprobe.cli.models import models
from fmprobe.cli.ood import ood
from fmprobe.cli.output import with_output
from fmprobe.cli.probe import probe
from fmprobe.cli.report import report
from fmprobe.cli.score import score
from fmprobe.cli.weights import weights
from fmprobe.sharing import together
from fmprobe.stopping import listen

app = typer.Typer(
    help="Vision foundation models as dynamical systems: attractors of the latent map encode(decode(z)).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (demo, probe, weights, memorization, ood, score, compare, report, models):
    app.command()(with_output(command))
app.command("fit-decoder")(with_output(fit_decoder))
# The same run under the name of its first product.
app.command("prototypes", help="Extract a model's decoded attractors, one PNG each with an index.")(with_output(probe))


def main() -> None:
    """Run the command asked for; it ends, and exits, as `sharing.together` says."""
    listen()
    with together():
        app()
