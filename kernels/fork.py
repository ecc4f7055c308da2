"""Whether this process was forked from one that may have used OpenMP.

A forked child has its parent's record of OpenMP threads, but not the threads: it hangs or is
killed when it enters a parallel region. The rungs run one thread there. Import this module before
any fork: minivmamba does.
"""

import os

_forked = False


def is_forked() -> bool:
    return _forked


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork)
