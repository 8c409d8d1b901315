"""The command ``weld``, as ``weld`` and as ``python -m weldment``."""

import signal
import sys

from ._weldment import main as _main


def main() -> None:
    """Runs ``weld`` with the arguments of the process, and ends it."""
    # The command handles Ctrl-C itself; Python's handler would only wait for it to end.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(_main(["weld", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
