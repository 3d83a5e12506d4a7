"""The kit from a shell: `python -m dclip_kit --help`."""

import os
import sys

from dclip_kit.commands import main
from dclip_kit.runtime.machine import choose_threads, keep_memory

if __name__ == "__main__":
    choose_threads(os.environ)  # before a command imports PyTorch, which reads them
    keep_memory(os.environ)
    sys.exit(main())
