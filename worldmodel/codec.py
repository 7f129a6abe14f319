"""Encode speech as a bitstream, or decode a bitstream. The run is one of experiment=codec.

encode FILE   write a WAV or FLAC file as a bitstream (.wmc), with the sound that it decodes to and
              the spectrograms of both: python -m worldmodel.codec encode in.wav --kbps 3
decode FILE   write the sound of a bitstream that the same run wrote

The bitstream is entropy-coded with a model of the codes. --entropy counts: the frequencies of the
training codes (computed at the first use and kept in the folder of the run); prior: the prior of
the run, which decodes only on a machine of the same kind; none: codes of fixed width; auto: the
shortest of these.
"""

import argparse
import sys
from pathlib import Path

from worldmodel.config.cli import Config
from worldmodel.config.entry_point import entry_point
from worldmodel.config.flags import add_number, add_output
from worldmodel.errors import ConfigError
from worldmodel.util.output import SOUND_SUFFIXES, check_output, output_of
from worldmodel.util.ranges import Positive

ENTROPY = ("auto", "none", "counts", "prior")
SUFFIX = ".wmc"


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_number(parser, "--kbps", Positive, "encode: as many codebooks as N kbit/s allow at fixed width (all)")
    parser.add_argument("--entropy", choices=ENTROPY, help="encode: the model of the codes (auto)")
    stream = "code the sound in chunks of 20 ms, as in live transmission"
    parser.add_argument("--stream", action="store_true", help=stream)
    add_output(parser, (SUFFIX, *SOUND_SUFFIXES))


@entry_point("codec", __doc__, add_flags, operands=("encode|decode", "FILE"))
def main(args: argparse.Namespace, config: Config) -> None:
    """Load the run, encode or decode, write, report."""
    action, file = args.operands[0], Path(args.operands[1])
    if action not in ("encode", "decode"):
        raise ConfigError(f"{action!r} is no action; choose encode or decode")
    for name in ("kbps", "entropy") if action == "decode" else ():
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name} goes with encode; a bitstream states how it was written")
    suffixes = (SUFFIX,) if action == "encode" else SOUND_SUFFIXES
    check_output(args.output, suffixes)

    from worldmodel.runs.folder import TOKENIZER  # only now, since it imports torch
    from worldmodel.runs.kind import Kind, choose_run
    from worldmodel.speech.codec.run import decode_file, encode_file, load_codec

    run = choose_run(args.overrides, config, TOKENIZER, Kind.SPEECH)
    codec = load_codec(run, config.device)
    print(f"run       {run}")
    if action == "encode":
        used = codec.num_codebooks if args.kbps is None else codec.codebooks_of(args.kbps)
        extra = "" if args.entropy in (None, "auto") else f"-{args.entropy}"
        name = f"{file.stem}-{codec.bits_per_second(used) / 1000:g}k{extra}"
        output = output_of(args.output, run / "dreams", name, suffixes)
        encode_file(run, codec, file, used, args.entropy or "auto", args.stream, output)
    else:
        output = output_of(args.output, run / "dreams", file.stem, suffixes)
        decode_file(run, codec, file, args.stream, output.path(output.suffix or ".wav"))


if __name__ == "__main__":
    sys.exit(main())
