"""The command line: `pdunroll COMMAND ...`, the same as `python -m pdunroll COMMAND ...`."""

from __future__ import annotations

import sys

COMMANDS = {
    "prepare": "quantize speech and cut it into frames",
    "train": "train one operator, or with -m a sweep of them",
    "operators": "write the trained operators as files of their own, for restore and for DVC",
    "evaluate": "compute the test error after every number of iterations and at the certified optimum",
    "theory": "measure whether the paper's theorems apply, and how near the gradients are to their limits",
    "quality": "score restored sentences by SDR, SI-SDR, PESQ and STOI",
    "figures": "draw the paper's figures and write a table of results",
    "verdicts": "judge which claims of the slides hold",
    "report": "write an experiment as one HTML file",
    "dashboard": "publish a dashboard on Weights & Biases",
    "settings": "write the composed settings, split by what depends on them, for DVC",
    "restore": "restore a recording of low bit depth",
}
USAGE = (
    "usage: pdunroll COMMAND [OVERRIDES]\n\ncommands (`pdunroll COMMAND --help` shows the settings of one):\n"
    + "".join(f"  {name:<10} {line}\n" for name, line in COMMANDS.items())
)


def main() -> None:
    """Run the command that the first argument names with the arguments after it."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(USAGE)
    elif name not in COMMANDS:
        print(f"pdunroll: there is no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)
    else:
        from pdunroll.commands.start import run

        given = sys.argv[2:]
        sweeping = [flag for flag in given if flag in ("-m", "--multirun")]  # only valid before the overrides
        sys.argv = [f"pdunroll {name}", *sweeping, *(part for part in given if part not in sweeping)]
        run(name)


if __name__ == "__main__":
    main()
