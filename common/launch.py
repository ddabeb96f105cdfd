"""Commands of the user as stages of a longer one."""

import os
import shlex
import signal
import subprocess
from collections.abc import Sequence

from common.cli import Stopped
from common.measure import max_rss_bytes, reset_peak_memory


def call(command: Sequence[str]) -> int:
    """Run a command in a process of its own, on the same terminal, and wait for it.

    SIGTERM is passed on, so that the command saves first.

    Returns:
        Its peak memory, bytes.
    Raises:
        ValueError: it failed, and its own message is above; or it cannot be started.
        Stopped: it was stopped by a signal.
    """
    shown = shlex.join(command)
    print(f"$ {shown}", flush=True)  # noqa: T201
    reset_peak_memory()  # which a new process inherits from the one that starts it
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        raise ValueError(f"{command[0]}: cannot be started ({error.strerror})") from None
    passed: list[int] = []

    def pass_on(number: int, _: object) -> None:
        passed.append(number)
        os.kill(process.pid, number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except KeyboardInterrupt:  # the command got the signal too, and saves
        passed.append(signal.SIGINT)
        _, status, usage = os.wait4(process.pid, 0)
    finally:
        signal.signal(signal.SIGTERM, before)
    process.returncode = code = os.waitstatus_to_exitcode(status)
    if code > 128 or code < 0 or (code and passed):  # torchrun says 1 for any signal
        number = passed[-1] if passed else code - 128 if code > 128 else -code
        raise Stopped(f"{shown} was stopped. Run the same command to go on.", number)
    if code:
        raise ValueError(f"{shown} ended with exit code {code}; its message is above")
    return max_rss_bytes(usage)
