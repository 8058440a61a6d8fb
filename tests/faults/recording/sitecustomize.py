"""Write down what a worker puts on the disk: Python imports this by itself where it is on PYTHONPATH."""

import os
import stat
import sys

if "SYNCED" in os.environ and "sweep" in sys.orig_argv:
    _log = os.open(os.environ["SYNCED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    _fsync = os.fsync

    def fsync(file) -> None:
        """Sync a file, and write down its inode, size and time."""
        _fsync(file)
        found = os.fstat(file)
        if stat.S_ISREG(found.st_mode):
            os.write(_log, f"{found.st_ino} {found.st_size} {found.st_mtime_ns}\n".encode())

    os.fsync = fsync
