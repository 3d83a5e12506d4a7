"""The kit from a shell: `python -m dclip_kit --help`."""

import sys

from dclip_kit.commands import main

if __name__ == "__main__":
    sys.exit(main())
