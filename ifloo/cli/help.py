"""Text of `ifloo --help`, apart from every heavy import so that it appears at once."""

COMMANDS = {
    "fit": "Train the base model to a certified minimum and write its checkpoint.",
    "influence": "Score every training sample against the chosen test samples.",
    "loo": "Refit without the top-k and random samples and record the test losses.",
    "report": "Compare predicted with actual changes: verdict, pictures, TensorBoard.",
    "pipeline": "All of it: fit, influence, loo, report; what is already there is kept.",
    "doctor": "List everything that stands between this model, its data and valid scores.",
}

_LINES = "\n".join(f"  {name:<11}{text}" for name, text in COMMANDS.items())

HELP = f"""usage: ifloo COMMAND [--config FILE] [--KEY VALUE ...]

Finds the training samples that made a model predict what it did, and proves it by leave-one-out refits.

commands:
{_LINES}

  ifloo COMMAND --help          every setting of a command, with its default
  ifloo COMMAND --print_config  the settings a command would run with, as YAML

options:
  -h, --help          this text
  --version           the version
  --completion SHELL  a script for bash, zsh, fish, ... that completes commands and settings on TAB

example:
  ifloo pipeline --config configs/mnist.yaml --data.source embedded

exit codes: 0 done; 1 failed during work; 2 wrong flags, config or input files; 130 by Ctrl-C; 143 by SIGTERM.
"""
