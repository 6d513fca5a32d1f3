"""The command line. Data goes to stdout, everything else to stderr.

Exit codes: 0 done, 1 a mistake in the input or the command, 2 a bug of qdc, 130 interrupted.
"""

import os
import sys
import traceback


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; errors become one message and an exit code."""
    import typer

    from qdc.cli.app import app
    from qdc.errors import QdcError

    try:
        result = app(arguments, prog_name="qdc", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except QdcError as error:
        return _fail(error, str(error))
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if _is_usage(error):
            context = getattr(error, "ctx", None)
            help_ = f"\n  help  {context.command_path} --help" if context is not None else ""
            return _fail(error, f"error {error.format_message()}{help_}")  # type: ignore[attr-defined]
        traceback.print_exc()
        print("error this is a bug of qdc, not a mistake of yours", file=sys.stderr)
        return 2


def _is_usage(error: Exception) -> bool:
    """Whether the command line itself was wrong; typer carries its own copy of click's classes."""
    import typer

    return any(
        kind.__name__ == "ClickException" and isinstance(error, kind)
        for kind in typer.BadParameter.__mro__
    )


def _fail(error: Exception, text: str) -> int:
    print(text, file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        print(f"  {note}", file=sys.stderr)
    return 1
