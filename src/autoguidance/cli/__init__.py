"""The command line: one module per verb, thin (parse, call, print)."""

import importlib
import keyword
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

VERBS = (
    "run",
    "data",
    "train",
    "ema",
    "import",
    "models",
    "generate",
    "stats",
    "evaluate",
    "report",
    "toy",
    "tune",
    "diagnose",
    "study",
)


def register_verbs() -> None:
    """Import the verbs' modules, which register themselves with the application."""
    for verb in VERBS:
        importlib.import_module(f"autoguidance.cli.{verb}{'_' if keyword.iskeyword(verb) else ''}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 2 the user's mistake (one line on stderr), 130 interrupted.

    Any other exception is a bug and shows its traceback.
    """
    import typer

    from autoguidance.cli.common import app
    from autoguidance.errors import UserError

    register_verbs()

    def fail(message: str) -> int:
        print(f"autoguidance: {message}", file=sys.stderr)  # noqa: T201
        return 2

    try:
        with warnings.catch_warnings():
            python_form = warnings.showwarning

            def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
                if category.__module__.startswith(
                    "autoguidance."
                ):  # ours are for the user: one line, without the place in the code
                    print(f"autoguidance: {message}", file=sys.stderr)  # noqa: T201
                else:
                    python_form(message, category, *place)

            warnings.showwarning = show
            result = app(
                args=None if arguments is None else list(arguments), prog_name="autoguidance", standalone_mode=False
            )
    except UserError as error:
        return fail(str(error))
    except typer.TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # `autoguidance` alone: the message is the help
            print(error.format_message(), file=sys.stderr)  # noqa: T201
            return 2
        return fail(f"{' '.join(error.format_message().split())} (see --help)")
    except (typer.Abort, KeyboardInterrupt):
        print("autoguidance: interrupted; the same command continues", file=sys.stderr)  # noqa: T201
        return 130
    except BrokenPipeError:  # e.g. `autoguidance ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return result if isinstance(result, int) else 0


def entry() -> NoReturn:
    """The process that is `autoguidance`: run the command of its arguments, and exit with its code.

    Under torchrun it leaves at once: threads of gloo may still let go of tensors, and one that does while the interpreter is being
    torn down aborts the process ("terminate called without an active exception"), so that torchrun calls a finished command failed.
    """
    code = main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
