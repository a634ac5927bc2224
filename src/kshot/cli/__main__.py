"""``python -m kshot.cli COMMAND`` is ``kshot COMMAND``, as launchers of several processes need it."""

import sys

from kshot.cli import main

if __name__ == "__main__":
    sys.exit(main())
