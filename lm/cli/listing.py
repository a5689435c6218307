"""``lm train CONFIG --help``: every value that the command line can change."""

import tyro

from lm.experiment import Experiment


def show_values(experiment: Experiment, given: str) -> None:
    """Print each value's name, type, meaning and what the config has it at."""
    try:
        tyro.cli(
            Experiment,
            prog=f"lm train {given}",
            description=f"What can be changed of {given}, and what it is now.  The verb's own "
            "options (--runs, --name, --restart, ...) are told by: lm train --help",
            default=experiment,
            args=["--help"],
            config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
        )
    except SystemExit as ended:
        if ended.code:
            raise
