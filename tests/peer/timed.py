"""Runs a command and measures it.

The command is a child of a small process. The system counts what a process had before it became another program, so the
child of one that holds a model would seem to hold it too.
"""

import json
import subprocess
import sys

SMALL = """
import json, os, subprocess, sys, time
start = time.time()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(json.dumps([status, time.time() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024]))
"""


def timed(words, where="."):
    """Seconds, seconds of processor time, and the most resident memory in bytes of a command run in a folder."""
    line = [sys.executable, "-S", "-c", SMALL, *map(str, words)]
    done = subprocess.run(line, cwd=where, capture_output=True, text=True)
    status, *measured = json.loads(done.stdout)
    if status:
        sys.exit(f"{words}: {done.stderr}")
    return measured
