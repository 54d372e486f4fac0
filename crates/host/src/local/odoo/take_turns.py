"""Runs Odoo's program with its arguments, and has the crons of an instance's two slots take turns.

    OCORE_ODOO_PROGRAM=…/odoo OCORE_CRONS_LOCK=… python take_turns.py --config …

While one slot takes over from the other, both serve the same data. Crons run in one of them only: in the one that holds the lock of the instance,
for as long as any of its processes lives. The kernel gives it away when the last of them is gone, whatever ended them. So the slot that comes
needs no word from anybody to begin with its crons, and nobody can forget to give it.

A reload executes this file again by its place in `sys.argv`, as do the processes for websockets, which have no crons.
"""
import fcntl
import os
import sys
import threading

PROGRAM, LOCK = os.environ["OCORE_ODOO_PROGRAM"], os.environ["OCORE_CRONS_LOCK"]


class Turn:
    """Ours from the first success on. Forks inherit it; programs that are executed do not."""

    def __init__(self):
        self.descriptor = None

    def take(self, waits):
        if self.descriptor is None:
            descriptor = os.open(LOCK, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            except BlockingIOError:
                os.close(descriptor)
                return False
            self.descriptor = descriptor
        return True


def take_turns():
    import odoo.cli  # noqa: F401
    from odoo.service import server
    from odoo.tools import config

    turn = Turn()
    spawn_threads = server.ThreadedServer.cron_spawn
    spawn_workers = server.PreforkServer.process_spawn

    def cron_spawn(self):
        def wait():
            turn.take(waits=True)
            spawn_threads(self)

        if config["max_cron_threads"]:
            threading.Thread(target=wait, name="ocore.crons", daemon=True).start()

    def process_spawn(self):
        wanted = config["max_cron_threads"]
        if not wanted or turn.take(waits=False):
            return spawn_workers(self)
        # It is called again with each beat of the master.
        config["max_cron_threads"] = 0
        try:
            return spawn_workers(self)
        finally:
            config["max_cron_threads"] = wanted

    server.ThreadedServer.cron_spawn = cron_spawn
    server.PreforkServer.process_spawn = process_spawn


if sys.path[:1] == [os.path.dirname(os.path.abspath(__file__))]:
    # As if Python had been given the program itself.
    sys.path[0] = os.path.dirname(PROGRAM)
if sys.argv[1:2] != ["gevent"]:
    take_turns()
with open(PROGRAM, "rb") as file:
    code = compile(file.read(), PROGRAM, "exec")
exec(code, {"__name__": "__main__", "__file__": PROGRAM, "__builtins__": __builtins__})
