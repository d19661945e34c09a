"""The `trimtab` command. One thin file a verb, one line each below."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import typer

from trimtab import __version__, environment
from trimtab.cli import (
    bench,
    chat,
    evaluate,
    generate,
    inspect,
    optimize,
    quantize,
    report,
    serve,
    simulate,
)
from trimtab.errors import TrimtabError, UserError

app = typer.Typer(
    name="trimtab",
    help="Measure the quality-latency-cost frontier of a language model, choose a plan, serve it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("serve")(serve.command)
app.command("optimize")(optimize.command)
app.command("generate")(generate.command)
app.command("chat")(chat.command)
app.command("inspect")(inspect.command)
app.command("bench")(bench.command)
app.command("eval")(evaluate.command)
app.command("quantize")(quantize.command)
app.command("simulate")(simulate.command)
app.command("report")(report.command)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"trimtab {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    debug: bool = typer.Option(False, help="full tracebacks, and every internal check"),
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="print the version"
    ),
) -> None:
    if debug:
        os.environ["TRIMTAB_DEBUG"] = "1"  # the engine process inherits it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. What the user can mend is one line on stderr and status 2."""
    environment.prepare_process()
    if arguments is None:
        arguments = sys.argv[1:]
    arguments = list(arguments) or ["--help"]
    try:
        return int(app(arguments, prog_name="trimtab", standalone_mode=False) or 0)
    except UserError as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough; nothing is left to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if _is_usage_error(error):
            return _complain(error.format_message(), 2)  # type: ignore[attr-defined]
        if environment.debug_checks():
            traceback.print_exc()
            return 1
        if isinstance(error, TrimtabError):
            return _complain(str(error), 1)
        name = type(error).__name__
        return _complain(f"unexpected error: {name}: {error} (trimtab --debug ... shows where)", 1)


def _complain(message: str, status: int) -> int:
    print("trimtab: error: " + " ".join(message.split()), file=sys.stderr)
    return status


def _is_usage_error(error: Exception) -> bool:
    """typer carries its own copy of click, under no public name but those of its subclasses."""
    return isinstance(error, typer.BadParameter.__mro__[1])


if __name__ == "__main__":
    sys.exit(main())
