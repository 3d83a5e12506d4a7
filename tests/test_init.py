"""What importing the kit does, and does not, before anything of it is used."""

import os
import subprocess
import sys

import pytest

PRINT = 'import os, sys, dclip_kit; print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)'


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(given, expected):
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    done = subprocess.run(
        [sys.executable, "-c", PRINT], env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == [expected, "False"]
