"""``python -m sfumato`` and the ``sfumato`` command.

The contract: a refusal is one line on standard error and exit code 2; Ctrl-C is exit code 130; a traceback is a bug.
Under a launcher of several processes (``torchrun -m sfumato ...``) they share the work, or the first does it.
"""

from __future__ import annotations

import sys

from sfumato import launch
from sfumato.errors import Refusal


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command line with ``arguments``; returns the exit code."""
    from typer import Abort, BadParameter

    from sfumato.cli import app

    if arguments[:1] and arguments[0] not in launch.SHARED:
        if launch.rank() > 0:
            return 0
        launch.alone()  # what it trains on its way waits for nobody
    # the base of every usage error, which Typer exports under no name of its own
    usage_error: type[Exception] = next(c for c in BadParameter.__mro__ if c.__name__ == "ClickException")
    try:
        code = app(arguments, standalone_mode=False, prog_name="sfumato")
    except BrokenPipeError:
        return 141  # the reader of a pipe went away
    except (Refusal, OSError, usage_error) as error:
        return _say(_line(error), 2)
    except (KeyboardInterrupt, Abort) as interrupt:
        return _say(str(interrupt) or "interrupted", 130)
    return code if isinstance(code, int) else 0


def _line(error: BaseException) -> str:
    """One line for an error: what, and where there is one, which file."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return " ".join(str(message).split())


def _say(line: str, code: int) -> int:
    who = "sfumato" if launch.rank() == 0 else f"sfumato (process {launch.rank()})"
    print(f"{who}: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
