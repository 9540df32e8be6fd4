"""The command line ``samgraft`` (also ``python -m samgraft``): a table of commands, each loaded when it is called.

Errors of samgraft are one red line on stderr and exit code 2; ``--debug`` shows the traceback instead.
"""

import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

from samgraft.errors import SamgraftError

COMMANDS = {
    "fit": ("train an adapter on a data set", "samgraft.recipes.commands.fit"),
    "plan": ("say what a training run will need: memory, time, disk", "samgraft.recipes.commands.plan"),
    "adapt": ("move an adapter to new images without labels", "samgraft.recipes.commands.adapt"),
    "validate": ("score an adapter on the validation cases of a data set", "samgraft.recipes.commands.validate"),
    "segment": ("segment one file with an adapter, boxes or points", "samgraft.recipes.commands.segment"),
    "locate": (
        "find the 3D boxes of structures in a volume, or fit what finds them",
        "samgraft.recipes.commands.locate",
    ),
    "route": ("say which adapter's training images an image is like", "samgraft.recipes.commands.route"),
    "merge": ("make one adapter of several", "samgraft.recipes.commands.merge"),
    "trust": ("calibrate how far an adapter can be trusted", "samgraft.recipes.commands.trust"),
    "predict": ("masks of many files with an adapter, shared by processes", "samgraft.recipes.commands.predict"),
    "info": ("say what a file, an adapter or a backbone is", "samgraft.recipes.commands.info"),
    "shift": (
        "how two sets of images differ, and what is worth trying against it",
        "samgraft.recipes.commands.shift",
    ),
    "doctor": ("check a file, a DICOM series or a data set, and say what is wrong", "samgraft.recipes.commands.doctor"),
    "labels": ("bring RTSTRUCT, DICOM-SEG or other labels onto an image", "samgraft.recipes.commands.labels"),
    "rescale": ("let an adapter see images of another modality", "samgraft.recipes.commands.rescale"),
    "report": ("write the HTML report of a run", "samgraft.recipes.commands.report"),
    "demo": ("make two example images, segment them and write a report", "samgraft.recipes.commands.demo"),
    "boxes-to-masks": ("make an instance-mask set of a detection set", "samgraft.recipes.commands.boxes_to_masks"),
    "export": ("write a backbone or an adapter as ONNX files", "samgraft.recipes.commands.export"),
    "cache": ("features of frozen encoders on disk: how many, and remove them", "samgraft.recipes.commands.cache"),
    "distill": ("train a smaller backbone to answer like a larger one", "samgraft.recipes.commands.distill"),
    "pretrain": ("train the embedded backbone on procedural images", "samgraft.recipes.commands.pretrain"),
}
"""Name -> what it does, and the module whose ``run(arguments)`` does it."""


def usage() -> str:
    """The overview."""
    lines = [
        "usage: samgraft COMMAND [options]",
        "",
        "Graft small trainable parts onto a frozen segmentation backbone.",
        "",
    ]
    lines += [f"  {name:<14} {text}" for name, (text, _) in COMMANDS.items()]
    lines += [
        "",
        "samgraft COMMAND --help shows the options of a command; --debug shows tracebacks; --version the version.",
        "",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Words after the program name; None takes ``sys.argv``.

    Returns:
        0 if all went well, 2 for a named error or a wrong call, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] in ("--version", "-V"):
        print(_version())
        return 0
    if words[0] not in COMMANDS:
        fail(_unknown(words[0]))
        return 2
    return _run(words[0], words[1:], debug)


def _run(name: str, words: list[str], debug: bool) -> int:
    if not debug:
        warnings.filterwarnings("ignore", module="lightning")
    try:
        importlib.import_module(COMMANDS[name][1]).run(words)
    except SamgraftError as error:
        if debug:
            raise
        fail(f"{type(error).__name__}: {error}")
        return 2
    except KeyboardInterrupt:
        fail("stopped")
        return 130
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 2
    return 0


def fail(message: str, stream: TextIO | None = None) -> None:
    """Print ``samgraft: message`` as one line, red on a terminal."""
    stream = stream or sys.stderr
    line = "samgraft: " + " ".join(message.split())
    colour = (stream.isatty() and "NO_COLOR" not in os.environ) or "FORCE_COLOR" in os.environ
    print(f"\033[31m{line}\033[0m" if colour else line, file=stream)


def _unknown(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown command {name!r}{hint} Commands: {', '.join(COMMANDS)}"


def _version() -> str:
    from importlib import metadata

    try:
        return f"samgraft {metadata.version('samgraft')}"
    except metadata.PackageNotFoundError:
        return "samgraft (not installed)"


if __name__ == "__main__":
    sys.exit(main())
