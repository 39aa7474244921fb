"""Restore a recording of low bit depth, or a clipped one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from pdunroll.errors import InputError


class Parser(argparse.ArgumentParser):
    """A parser that raises `InputError`."""

    def error(self, message: str) -> NoReturn:
        """Raise `InputError` with the message of argparse."""
        raise InputError(f"{message}; `{self.prog} --help` shows the usage")


def parser() -> Parser:
    """Return the parser of the command line."""
    found = Parser(
        prog="python -m pdunroll restore",
        description="Restore a recording of low bit depth, or with --declip a clipped one. Every sample stays within "
        "its quantization cell; every frame is the sparsest one there under a learned operator, certified by its "
        "duality gap. Overlapping frames are averaged.",
        epilog="Any length, rate and number of channels; the rate is kept. Prints the cells that were found, the "
        "number of certified frames and the time.",
        allow_abbrev=False,
    )
    add = found.add_argument
    add("input", type=Path, help="the recording: wav, flac or what else libsndfile reads")
    add("output", type=Path, help="where the result goes: .wav (32-bit float) or .flac (24 bit)")
    add("--operator", type=Path, metavar="FILE", help="a trained operator: the operator.npy of a training, or an npz "
        "made of it; default: one that comes with pdunroll, trained on speech at 16 kHz, by the number of cells, or "
        "none beyond 8 bits: the recording is passed through unchanged")  # fmt: skip
    add("--bits", type=int, metavar="N", help="take the cells of `pdunroll.quantize` with N bits (mid-rise, on "
        "[-1, 1]) instead of inferring them from the file")  # fmt: skip
    add("--declip", action="store_true", help="the recording is clipped instead: restore its clipped samples, and "
        "leave the others as they are")  # fmt: skip
    add("--level", type=float, metavar="L", help="with --declip: the amplitude at which samples are clipped (1 is full "
        "scale), instead of finding it in the recording")  # fmt: skip
    add("--for", choices=("accuracy", "listening"), default="accuracy", dest="aim", help="accuracy: every frame is "
         "solved to the optimum, for the highest SDR (default); listening: a few iterations, for the highest PESQ, not "
         "certified")  # fmt: skip
    add("--shifts", type=int, metavar="S", help="average over S shifted grids of frames, in S times the time of one; "
         "default: 8")  # fmt: skip
    add("--tolerance", type=float, metavar="GAP", help="the relative duality gap to which every frame is certified; "
         "default: 0.01")  # fmt: skip
    add("--weight", type=float, metavar="W", help="from 0, the middles of the cells, to 1, the mean of what the frames "
        "give; default: the one with the highest SDR at this number of cells, 1 for listening")  # fmt: skip
    add("--reference", type=Path, metavar="FILE", help="the recording before quantization: prints SDR and SI-SDR of "
        "input and result against it")  # fmt: skip
    return found


def main() -> None:
    """Restore the recording that the command line names."""
    given = parser().parse_args()
    common = {"operator": given.operator, "reference": given.reference}
    if given.declip:
        from pdunroll.restore.declip import declip_file

        options = {"--bits": given.bits, "--shifts": given.shifts, "--tolerance": given.tolerance}
        options["--weight"] = given.weight
        options["--for"] = None if given.aim == "accuracy" else given.aim
        for name in (name for name, value in options.items() if value is not None):
            raise InputError(f"{name} is for quantized recordings; leave it out with --declip")
        declip_file(given.input, given.output, level=given.level, **common)
        return
    if given.level is not None:
        raise InputError("--level is for clipped recordings; it goes with --declip")
    from pdunroll.restore.restore import restore_file

    restore_file(
        given.input,
        given.output,
        bits=given.bits,
        listening=given.aim == "listening",
        shifts=given.shifts,
        tolerance=given.tolerance,
        weight=given.weight,
        **common,
    )
