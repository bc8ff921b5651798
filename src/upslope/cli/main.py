"""The `upslope` command: finds the subcommand, and says in one sentence what went wrong.

Only the standard library is imported before a subcommand is chosen, so that help comes at once.
"""

from __future__ import annotations

import importlib
import os
import sys

from upslope.errors import ArgumentError, Interrupted, UpslopeError, suggest

COMMANDS = {
    "train": "train an agent, or go on with a run",
    "evaluate": "play whole episodes with a run's policy and print the returns",
    "video": "film a run's policy",
    "doctor": "look for what is wrong with an environment, or here, before a long run",
    "audit": "hold every estimator against the exact gradient: bias, variance, noise",
    "dpo": "train a language model on preferences",
    "grpo": "train a language model by rewards of its own completions",
    "list": "show the algorithms, and the environments that have a recipe",
    "demo": "learn Flappy Bird in five minutes, then play it and film it",
}

HELP = """usage: upslope COMMAND ...

Policy gradients, from the log-derivative trick to GRPO.

  upslope train ppo CartPole-v1          train with the recipe; makes runs/ppo-CartPole-v1/
  upslope train runs/NAME --resume       go on with a run that was stopped or killed
  upslope evaluate runs/NAME             how good is it?
  upslope video runs/NAME                film it
  upslope grpo config.toml               train a language model; also: upslope dpo config.toml
  upslope doctor CartPole-v1             is all well, before a long run?
  upslope audit                          are the gradients right, and how noisy?

commands:
{commands}

upslope COMMAND --help tells more of each; upslope --version, the version.
"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code: 0 well, 1 an error said, 2 wrongly called."""
    try:
        try:
            run(sys.argv[1:] if arguments is None else arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # who was reading, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None  # as the shell says of one ended by SIGPIPE
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def run(arguments: list[str]) -> None:
    """Run the command line `arguments`; ends in SystemExit with the code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        commands = "\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items())
        print(HELP.format(commands=commands), end="")
        raise SystemExit(0 if arguments else 2)
    name, *rest = arguments
    if name == "--version":
        from upslope import __version__

        print(f"upslope {__version__}")
        return
    try:
        if name not in COMMANDS:
            raise ArgumentError(
                f"there is no command {name!r}{suggest(name, COMMANDS)}; upslope --help lists them"
            )
        code = importlib.import_module(f"upslope.cli.{name}").main(rest)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        raise SystemExit(stop.exit_code) from None
    except UpslopeError as error:
        print(f"upslope: {error}", file=sys.stderr)
        notes = getattr(error, "__notes__", [])
        print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, ArgumentError) else 1) from None
    raise SystemExit(code)
