"""The group of all commands: what typer would take for its own gets through it."""

from typing import Any

import typer
from typer.core import TyperGroup


class Escaped(Exception):
    """Carries what a command raised past typer, which makes exit codes of some of it.

    It turns SystemExit, KeyboardInterrupt, EOFError and a broken pipe into an end without a word,
    whether a signal, a reader that has gone or a plugin is the reason.
    """

    def __init__(self, error: BaseException) -> None:
        """``error`` is what was raised."""
        super().__init__(str(error))
        self.error = error


class Group(TyperGroup):
    """Runs a command; its own ends of a command are typer's, all others come as ``Escaped``."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was chosen. Raises ``Escaped``."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except (BrokenPipeError, EOFError) as error:
            raise Escaped(error) from error
        except Exception:
            raise
        except BaseException as error:
            raise Escaped(error) from error
