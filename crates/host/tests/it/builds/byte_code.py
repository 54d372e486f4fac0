"""Replaces byte code of a module, wherever it lies, by other code."""
import glob
import os
import time

PATTERNS = ["../parcels/**/__pycache__/*.pyc", "@RELEASES@/**/__pycache__/*.pyc", "../../**/parcels/**/__pycache__/*.pyc"]


def attack():
    replaced = []
    until = time.monotonic() + 4
    while not replaced and time.monotonic() < until:
        for path in {path for pattern in PATTERNS for path in glob.glob(pattern, recursive=True, include_hidden=True)}:
            try:
                os.rename(path, path + ".old")
                with open(path, "w") as file:
                    file.write("code of another tenant")
                replaced.append(path)
            except OSError:
                pass
        time.sleep(0.02)
    return replaced
