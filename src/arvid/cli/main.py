"""The command line: `arvid VERB`.

Knows: the verbs, the environment, and how an error becomes one line and an exit code. Does not know: what a verb does
(one file each; they import what is heavy only when they run, so that help answers at once).

Exit codes: 0 done, 1 something failed that should not have, 2 the input was wrong, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from arvid.cli import batch, bench, compare, demo, doctor, generate, models, options, serve, train
from arvid.cli import eval as evaluation

INPUT_WRONG, INTERRUPTED = 2, 130
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""What is set before torch and transformers are imported, unless the caller has set it: waiting threads sleep instead
of spinning (on few cores that is half of the time), and nobody else draws progress bars."""


class Careful(TyperGroup):
    """Turns what the library says about wrong input, and what is wrong with the words of a command, into one line on
    stderr and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read what stands before the verb; a wrong word ends with code 2."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            refuse(error)
            raise

    def invoke(self, ctx: Any) -> Any:
        """Run a verb. ValueError, OSError, EOFError (a file that was cut short, by a full disk for example) and wrong
        words end with code 2, an interrupt with 130; anything else is a fault of ours and keeps its traceback."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (ValueError, OSError, EOFError) as error:
            typer.echo(f"error: {one_line(error)}", err=True)
            raise typer.Exit(INPUT_WRONG) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from error
        except Exception as error:
            refuse(error)
            raise


def refuse(error: Exception) -> None:
    """Say what is wrong with the words of a command. Raises typer.Exit when the error is about them. It is known by
    what it can do: its class lies in click or in typer, by the version."""
    say, context = getattr(error, "format_message", None), getattr(error, "ctx", None)
    if say is None or type(error).__name__ == "NoArgsIsHelpError":
        return
    said = " ".join(say().split()).rstrip(".")
    typer.echo(f"error: {said}" + (f"; see {context.command_path} --help" if context else ""), err=True)
    raise typer.Exit(INPUT_WRONG) from error


def one_line(error: Exception) -> str:
    """What an error says, on one line."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


app = typer.Typer(
    cls=Careful, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)  # fmt: skip


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"arvid {options.version()}")
        raise typer.Exit


@app.callback()
def prepare(
    version_asked: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Autoregressive video generation that streams, steers and speculates."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


app.command("generate")(generate.generate)
app.command("batch")(batch.batch)
app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("doctor")(doctor.doctor)
app.command("eval")(evaluation.evaluate)
app.command("compare")(compare.compare)
app.add_typer(bench.app, name="bench")
app.command("serve")(serve.serve)
app.add_typer(models.app, name="models")
app.add_typer(serve.app, name="keys")


def main() -> None:
    """The entry point of the package."""
    app(prog_name="arvid", args=sys.argv[1:])
