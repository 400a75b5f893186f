"""The command line: one file a subcommand. Nothing heavy is imported before a command runs."""

import sys

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
from fmprobe.cli.weights import weights
from fmprobe.errors import InputError
from fmprobe.sharing import Abandoned, is_main, launched, quiet_unless_main, team
from fmprobe.stopping import Stopped, ignore, listen

app = typer.Typer(
    help="Vision foundation models as dynamical systems: attractors of the latent map encode(decode(z)).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (demo, probe, weights, memorization, ood, compare, report, models):
    app.command()(with_output(command))
app.command("fit-decoder")(with_output(fit_decoder))
# The same run under the name of its first product.
app.command("prototypes", help="Extract a model's decoded attractors, one PNG each with an index.")(with_output(probe))


def main() -> None:
    """Exit 0: done; 2: bad input, one line on stderr; 130, 143: stopped; else a fault, with its traceback.

    Of processes that were launched together one speaks.
    """
    listen()
    try:
        with quiet_unless_main():
            app()
    except InputError as error:
        _give_up(str(error))
        raise SystemExit(2) from None
    except Abandoned:
        raise SystemExit(2) from None
    except Stopped as stopped:
        if is_main():
            _give_up(str(stopped))
        raise SystemExit(stopped.exit_code) from None
    except Exception:
        _give_up()
        raise
    finally:
        if launched() > 1 and "torch" in sys.modules:
            ignore()  # a launcher ends the others as soon as one has gone
            team().leave()


def _give_up(line: str = "") -> None:
    """Print why, unless another process gave up before, and let the others end too."""
    ignore()
    first = launched() == 1 or team().fail()
    if line and first:
        print(f"fmprobe: {line}", file=sys.stderr)
