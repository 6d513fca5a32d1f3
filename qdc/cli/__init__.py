"""The command line. Data goes to stdout, everything else to stderr.

Exit codes: 0 done, 1 a mistake in the input or the command, 2 a bug of qdc or of a plugin, 130
interrupted (SIGINT), 143 terminated (SIGTERM).
"""

import contextlib
import errno
import logging
import os
import select
import shlex
import sys
import traceback

from qdc import stopping
from qdc.cli.ranks import is_first, leave, several, shows_errors, watch_parent
from qdc.cli.waiting import wait_asleep

INTERRUPTED, TERMINATED = 130, 143
STOPPED = (INTERRUPTED, TERMINATED)
BAD_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}
"""Whoever wrote or read, nobody made a mistake in code."""


def main() -> None:
    """Run the command line and exit with its code."""
    wait_asleep()  # before anything loads torch
    stopping.install()
    try:
        if several():
            watch_parent()
        code = run(sys.argv[1:])
    except (KeyboardInterrupt, stopping.Terminated) as error:  # before the command, or behind it
        code = _stopped(error)
    stopping.end_at_once(code)
    if several() or code in STOPPED:
        # Everything is written, and the group is left. Threads of its sockets may still run, and
        # an interpreter that ends under them aborts now and then, though all is done. One that
        # ends also puts back what signals do by default, and who asks twice would kill it so.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command; errors become one message and an exit code."""
    code = _run(arguments)
    if code not in STOPPED:  # others may not come, too
        leave()
    return code


def _run(arguments: list[str]) -> int:
    import typer

    from qdc.cli import app as _app  # noqa: F401  # registers the commands, in the order of --help
    from qdc.cli import app_models as _app_models  # noqa: F401
    from qdc.cli.group import Escaped
    from qdc.cli.options import app
    from qdc.distributed.failure import FailedElsewhere
    from qdc.errors import InvalidGraph, QdcError

    # It warns of a missing cache folder, which changes nothing about a page.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        result = app(arguments or ["--help"], prog_name="qdc", standalone_mode=False, obj=arguments)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except Escaped as carrier:
        return _escaped(carrier.error, arguments)
    except FailedElsewhere as error:
        return error.exit_code
    except InvalidGraph as error:
        return _bug(error, str(error), arguments)
    except QdcError as error:
        return _fail(error, str(error))
    except (KeyboardInterrupt, stopping.Terminated, typer.Abort) as error:
        return _stopped(error)
    except BrokenPipeError:
        return _closed_pipe()
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # typer has caught it
            return _closed_pipe()
        raise
    except Exception as error:
        if _is_usage(error):
            return _fail(error, _usage_text(error))
        if isinstance(error, OSError) and _is_outside(error):
            _give_up_stdout()
            what = "read or write" if error.filename is None else f"use {error.filename}"
            reason = (error.strerror or "unknown reason").lower()
            return _fail(error, f"error[QDC002] cannot {what}: {reason}")
        if shows_errors():
            traceback.print_exc()
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        return _bug(error, f"error[QDC900] {what}", arguments)


def _escaped(error: BaseException, arguments: list[str]) -> int:
    """End as what a command raised asks for: only a signal, or a reader that left, ends it so."""
    from qdc.cli.blame import plugin_of

    if stopping.is_stop(error):
        return _stopped(error)
    if isinstance(error, BrokenPipeError) and not plugin_of(error) and _nobody_reads():
        return _closed_pipe()
    what = f"{type(error).__name__}: {error}".rstrip(": ")
    text = f"error[QDC900] the command was ended from inside: {what}"
    return _bug(error, text, arguments)


def _stopped(error: BaseException) -> int:
    """Say that a signal has ended the command, and how to go on with it."""
    code = TERMINATED if isinstance(error, stopping.Terminated) else INTERRUPTED
    stopping.last_words(code)
    with contextlib.suppress(OSError, ValueError):
        if is_first():
            for note in _notes(error):
                print(note, file=sys.stderr)
            print("terminated" if code == TERMINATED else "interrupted", file=sys.stderr)
    return code


def _nobody_reads() -> bool:
    """Whether stdout is a pipe whose reader has gone."""
    try:
        poll = select.poll()
        poll.register(1, select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, AttributeError):
        return True  # it cannot be told: as it is said


def _closed_pipe() -> int:
    """Whoever read the output has enough of it; keep the interpreter from flushing the rest."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 0


def _give_up_stdout() -> None:
    """Keep the interpreter from writing at exit what stdout does not take."""
    try:
        sys.stdout.flush()
    except OSError:
        _closed_pipe()


def _is_outside(error: OSError) -> bool:
    """Whether a file or a disk is the reason, and no code of ours or of a plugin."""
    return error.errno in BAD_DISK or (
        error.filename is not None and not any(note.startswith("repro:") for note in _notes(error))
    )


def _is_usage(error: Exception) -> bool:
    """Whether the command line itself was wrong; typer carries its own copy of click's classes."""
    import typer

    return any(
        kind.__name__ == "ClickException" and isinstance(error, kind)
        for kind in typer.BadParameter.__mro__
    )


def _usage_text(error: Exception) -> str:
    """Click's message in the form of our own: lower case, no full stop, what to type next."""
    message = str(error.format_message())  # type: ignore[attr-defined]
    text = f"error[QDC001] {message[:1].lower()}{message[1:]}".rstrip(".")
    context = getattr(error, "ctx", None)
    if context is None:
        return text
    from qdc.cli.elsewhere import found_elsewhere

    instead = found_elsewhere(str(context.info_name), str(getattr(error, "option_name", "")))
    if instead:
        text = f"{text.partition(' (Possible')[0].partition(' Did you mean')[0].rstrip('.')}"
    return f"{text}\n  help  {instead or f'{context.command_path} --help'}"


def _fail(error: BaseException, text: str) -> int:
    if not shows_errors():
        return 1
    print(text, file=sys.stderr)
    for note in _notes(error):
        print(f"  {note}", file=sys.stderr)
    return 1


def _bug(error: BaseException, text: str, arguments: list[str]) -> int:
    _fail(error, text)
    if not shows_errors():
        return 2
    print(f"  this is a bug of {_owner(error, arguments)}", file=sys.stderr)
    print(f"  rerun {shlex.join(['qdc', *arguments])}", file=sys.stderr)
    return 2


def _notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", ()))


def _owner(error: BaseException, arguments: list[str]) -> str:
    """Name the last line of a plugin that the traceback runs through, if any does."""
    from qdc.cli.blame import plugin_of

    found = plugin_of(error)
    if found:
        return found
    if any(each.partition("=")[0] == "--plugin" for each in arguments):
        return "a plugin or of qdc"
    return "qdc, not a mistake of yours"
