"""Runs Odoo's program with its arguments, as one of the two slots of an instance: its crons take turns with the other's, and it is warm when it answers.

    OCORE_ODOO_PROGRAM=…/odoo OCORE_CRONS_LOCK=… python slot.py --config …

*Crons.* While one slot takes over from the other, both serve the same data. Crons run in one of them only: in the one that holds the lock of the
instance, for as long as any of its processes lives. The kernel gives it away when the last of them is gone, whatever ended them. So the slot that comes
needs no word from anybody to begin with its crons, and nobody can forget to give it.

*Warm.* Odoo makes much when it is first needed: the templates and the routes of a page, the tree of which field depends on which, the connection to the
database. The first page, and the first record that is written, took 40 to 150 ms for that, in each worker, beside 6 later on. Where there are workers,
it is made before anybody is let in: once in the process that they are forked from, and by each of them what cannot be shared. An Odoo without workers
is asked for that page anyway before it counts as started.

*Its own ports.* It does not bind its ports, where somebody else could have been faster: it has sockets that are bound to them, and listens at these. They
are kept for it while it does not run.

A reload executes this file again by its place in `sys.argv`, as do the processes for websockets, which have neither crons nor pages.
"""
import fcntl
import functools
import logging
import os
import socket
import subprocess
import sys
import threading
import wsgiref.util

PROGRAM, LOCK = os.environ["OCORE_ODOO_PROGRAM"], os.environ["OCORE_CRONS_LOCK"]
# The one that proves that an Odoo serves, too.
PAGE = "/web/login"
# The inherited sockets by their ports.
SOCKETS = {int(port): int(descriptor) for port, descriptor in (place.split(":") for place in os.environ["OCORE_SOCKETS"].split(","))}


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


def take_turns(server, config):
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


def begin_warm(server, config):
    preload = server.preload_registries
    start_worker = server.WorkerHTTP.start

    def preload_registries(names):
        code = preload(names)
        if config["workers"] and not code:
            without_harm(begin_websockets, server.server)
            for name in names or []:
                without_harm(share, name)
        return code

    def start(self):
        start_worker(self)
        without_harm(ask, PAGE)

    server.preload_registries = preload_registries
    server.WorkerHTTP.start = start


def bind_inherited(kind, bind):
    """Whoever binds one of the ports gets the socket that has it, in the place of its own."""

    def bind_or_take(self, address):
        descriptor = SOCKETS.get(address[1]) if isinstance(address, tuple) and address[0] == "127.0.0.1" else None
        if descriptor is None:
            return bind(self, address)
        # Whether calls wait is a property of the socket that goes.
        waits = os.get_blocking(self.fileno())
        os.dup2(descriptor, self.fileno(), inheritable=False)
        os.set_blocking(self.fileno(), waits)

    kind.bind = bind_or_take


def listen_at_inherited(server):
    bind_inherited(socket.socket, socket.socket.bind)
    stop, spawn = server.PreforkServer.stop, server.PreforkServer.long_polling_spawn

    def stop_listening(self, graceful=True):
        is_reload = server.server_phoenix
        stop(self, graceful)
        if not is_reload:
            # As the end of its last process would, if nobody else had the sockets.
            for descriptor in SOCKETS.values():
                with socket.socket(fileno=os.dup(descriptor)) as listener:
                    without_harm(listener.shutdown, socket.SHUT_RDWR)

    def long_polling_spawn(self):
        popen = subprocess.Popen
        subprocess.Popen = functools.partial(popen, pass_fds=tuple(SOCKETS.values()))
        try:
            return spawn(self)
        finally:
            subprocess.Popen = popen

    server.PreforkServer.stop = stop_listening
    server.PreforkServer.long_polling_spawn = long_polling_spawn


def listen_at_inherited_with_gevent():
    import gevent.socket

    def bind(self, address):
        return self._sock.bind(address)

    bind_inherited(gevent.socket.socket, bind)


def without_harm(make, argument):
    """Whoever needs it first makes it as ever."""
    try:
        make(argument)
    except Exception:
        logging.getLogger("ocore.slot").info("could not be made before it is needed", exc_info=True)


def begin_websockets(prefork):
    """Their process starts bare, which takes longer than all that follows here; Odoo would begin with it last."""
    if not prefork.long_polling_pid:
        prefork.long_polling_spawn()


def share(name):
    from odoo.modules.registry import Registry
    from odoo.tools.mimetypes import guess_mimetype

    ask(PAGE)
    # A property that is computed at the first write, and the C library's database of file types.
    getattr(Registry(name), "_field_triggers", None)
    guess_mimetype(b"")


def ask(path):
    """A request within the process, by way of all that one from outside goes through."""
    import odoo.http

    environ = {"PATH_INFO": path, "REMOTE_ADDR": "127.0.0.1"}
    wsgiref.util.setup_testing_defaults(environ)
    answer = odoo.http.root(environ, lambda status, headers, failure=None: None)
    try:
        for _ in answer:
            pass
    finally:
        getattr(answer, "close", lambda: None)()


if sys.path[:1] == [os.path.dirname(os.path.abspath(__file__))]:
    # As if Python had been given the program itself.
    sys.path[0] = os.path.dirname(PROGRAM)
for inherited in SOCKETS.values():
    # So that they are there when it executes itself again.
    os.set_inheritable(inherited, True)
if sys.argv[1:2] == ["gevent"]:
    listen_at_inherited_with_gevent()
else:
    import odoo.cli  # noqa: F401
    from odoo.service import server
    from odoo.tools import config

    take_turns(server, config)
    begin_warm(server, config)
    listen_at_inherited(server)
with open(PROGRAM, "rb") as file:
    code = compile(file.read(), PROGRAM, "exec")
exec(code, {"__name__": "__main__", "__file__": PROGRAM, "__builtins__": __builtins__})
