"""The parent that Odoo's processes are forked from.

    python nursery.py SOCKET PROGRAM [--without MODULE,MODULE…]

It imports Odoo and the Python code of Odoo's own modules, waits at SOCKET, and forks for each connection a child that becomes one instance's
Odoo: what a bare start imports for a second is there already, and its memory is shared.

It runs as root, since its children become other users. Its rules:

1. It never runs, imports or reads anything of a project. A child does, when it is its instance's user, in its own session, network and
   control group, and has been told to go on.
2. It never learns what a child is told. It forks before it reads, so nothing of one tenant (its environment holds secrets) is ever in the
   memory that the next child gets. It opens no database and has one thread.
3. A child keeps nothing of it: not the socket, not the other children's connections, and its own only as long as it runs nobody's code.
4. Nobody depends on it. A child lives on without it; whoever cannot reach it, or gets `no`, starts Odoo bare.
5. It leaves Odoo's code as it is, but for `list_modules_once`, which saves time and changes no outcome.

A conversation, in lines: `forked <pid>` from the parent, before anybody else can say anything; the request as JSON, with the listening sockets that the
child gets; `ready` or `no <reason>` from the child; `go` (a connection that ends instead ends the child), with which the child lets the connection go,
since from there on it is its tenant's; at last `ended <wait status>` from the parent, which knows. Where the request names a pipe for it, the child
writes there with which code it ends, just before.
"""

import ast
import ctypes
import functools
import gc
import importlib.metadata
import importlib.util
import json
import os
import re
import runpy
import select
import site
import socket
import struct
import sys
import tempfile
import time
import weakref

SO_PEERCRED_FORMAT = "3i"
# prctl(2), unshare(2)
PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38
CLONE_NEWNET, CLONE_NEWNS = 0x40000000, 0x00020000
# mount(2)
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_SLAVE = 2, 4, 1 << 12, 1 << 14, 1 << 19
# Modules of which each installation needs few (localizations), none (tests), or other machines (devices).
LEFT_OUT = ("l10n_", "test_", "hw_", "iot_", "pos_iot")
# What a Python environment on top of the distribution's may run when Python starts; anything else needs a bare start.
USUAL_PTH = {"odoo-distribution.pth", "distutils-precedence.pth"}
# Of Odoo itself, what nobody imports before it runs.
IMPORTED_LATE = ("odoo.cli.server", "odoo.modules.loading")
# What is larger, the C library maps for itself alone; what is smaller than one of its chunks, it cannot give, in bytes.
LARGEST_FILLER, SMALLEST_FILLER = 120_000, 24
# How long a child waits for its request, and between two looks whether the parent is still wanted, in seconds.
PATIENCE, LOOK_INTERVAL = 30, 20

# Of a conversation, at once.
LINE_PART, MOST_SOCKETS = 65536, 8
# The variable that says where listening sockets are.
SOCKETS = "OCORE_SOCKETS"

libc = ctypes.CDLL(None, use_errno=True)


class NoFork(Exception):
    """Why this Odoo has to be started bare."""


def checked(result):
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def write(path, value):
    with open(path, "w") as file:
        file.write(str(value))


def prctl(option, *arguments):
    checked(libc.prctl(option, *(ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4])))


class HeapUse(ctypes.Structure):
    """mallinfo2(3), in bytes. `keepcost` is what lies free at the heap's end."""

    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]


def fill_gaps():
    """Gives the memory that lies free between what is in use to nobody; the answer holds it, and may be forgotten only with the process.

    What a child allocates goes where there is room first. In a gap it would have the child copy a page of 4 KiB, shared until then, for some
    bytes. Without gaps it goes where nothing is shared. Costs no memory: the pages with the gaps are there. Where Python or the C library do
    not tell of their gaps, these stay.
    """
    held = fill_pools()
    fill_heap()
    return held


def fill_pools():
    """Python's own: objects up to 512 bytes, by size."""
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            sys._debugmallocstats()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        file.seek(0)
        text = file.read().decode(errors="replace")
    held = []
    # class, size, pools, blocks in use, free blocks
    for size, free in re.findall(r"^ +\d+ +(\d+) +\d+ +\d+ +(\d+)$", text, re.MULTILINE):
        size, free = int(size), int(free)
        if size == 16:
            held.append([object() for _ in range(free)])
        elif size == 32:
            held.append([complex(0, place) for place in range(free)])
        elif size > 32:
            # With its header of 33 bytes it is rounded up to `size`.
            held.append([bytes(size - 40) for _ in range(free)])
    return held


def fill_heap():
    """The C library's: everything else."""
    if not hasattr(libc, "mallinfo2"):
        return
    libc.mallinfo2.restype = HeapUse
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    size = LARGEST_FILLER
    while size >= SMALLEST_FILLER:
        before = libc.mallinfo2()
        filler = libc.malloc(size)
        after = libc.mallinfo2()
        if (before.arena, before.keepcost) != (after.arena, after.keepcost):
            # From the end: no gap takes that much.
            libc.free(filler)
            size = min(size * 9 // 10, size - 16)
    libc.malloc_trim(ctypes.c_size_t(0))


class Missing:
    """The last finder of all: remembers what nobody found. Odoo does without some packages that a project's environment may bring."""

    def __init__(self):
        self.names = set()

    def find_spec(self, name, path=None, target=None):
        self.names.add(name.partition(".")[0])
        return None


def warm_up(program, without):
    """Imports Odoo and its own modules. Gives the names of packages that were looked for and are not there."""
    sys.argv = [program]
    sys.path[0] = os.path.dirname(program)
    missing = Missing()
    sys.meta_path.append(missing)
    import odoo.cli
    import odoo.addons

    for name in IMPORTED_LATE:
        if is_there(name):
            __import__(name)
    here = list(odoo.addons.__path__)
    # An upstream checkout has most modules beside its code.
    beside = os.path.join(os.path.dirname(program), "addons")
    if os.path.isdir(beside) and beside not in here:
        odoo.addons.__path__.append(beside)
    broken = set()
    for directory in list(odoo.addons.__path__):
        for name in sorted(os.listdir(directory)):
            if name.startswith(LEFT_OUT) or name in without or not takes_part(os.path.join(directory, name)):
                continue
            try:
                __import__(f"odoo.addons.{name}")
            except Exception as error:
                print(f"{name} is left out: {error}", file=sys.stderr, flush=True)
                broken.add(name)
    if broken:
        # Half of what they define is there. Once more, without them.
        names = ",".join(sorted(broken | without))
        os.execv(sys.executable, [sys.executable, __file__, SOCKET, program, "--without", names])
    if beside not in here and beside in odoo.addons.__path__:
        odoo.addons.__path__.remove(beside)
    sys.meta_path.remove(missing)
    return missing.names


def list_modules_once():
    """An update goes through the manifests of all of Odoo's modules and compares them with the database, and does it again for the modules to
    update, before any code but `base` is loaded: both together are most of a small update's time. The files of a release do not change, nor has anything else
    happened in that transaction, so the second time would find what the first one wrote; it is left out. Versions of Odoo that do this in another
    way keep their way."""
    from odoo.addons.base.models import ir_module

    model = getattr(ir_module, "IrModuleModule", None) or getattr(ir_module, "Module", None)
    update_list = getattr(model, "update_list", None)
    if update_list is None:
        return
    listed = None

    @functools.wraps(update_list)
    def once(self):
        nonlocal listed
        loaded = getattr(self.pool, "_init_modules", None)
        if loaded is None or not loaded <= {"base"}:
            return update_list(self)
        if listed and listed() is self.env.cr:
            return [0, 0]
        done = update_list(self)
        listed = weakref.ref(self.env.cr)
        return done

    model.update_list = once


def takes_part(directory):
    """Not what would be imported in part only. A `post_load` hook is run by Odoo when it imports the module, which it would not do again."""
    try:
        with open(os.path.join(directory, "__manifest__.py"), encoding="utf-8") as file:
            manifest = ast.literal_eval(file.read())
    except (OSError, ValueError, SyntaxError):
        return False
    needs = manifest.get("external_dependencies", {}).get("python", [])
    return manifest.get("installable", True) and not manifest.get("post_load") and all(is_there(name) for name in needs)


def is_there(name):
    """Manifests name packages by what they import or by how they are installed."""
    try:
        importlib.metadata.distribution(name)
        return True
    except importlib.metadata.PackageNotFoundError:
        return importlib.util.find_spec(name) is not None


class Nursery:
    """Serves its socket until that is gone."""

    def __init__(self, path):
        if os.path.lexists(path):
            os.unlink(path)
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        mask = os.umask(0o177)
        self.listener.bind(path)
        os.umask(mask)
        self.inode = os.stat(path).st_ino
        self.listener.listen(64)
        self.poll = select.poll()
        self.poll.register(self.listener, select.POLLIN)
        # By descriptor: a child's pid with the connection that hears of its end, and the connections that are still wanted.
        self.children = {}
        self.connections = {}

    def serve(self):
        """Returns in children only, with their connection; the parent ends in here."""
        while True:
            for descriptor, event in self.poll.poll(LOOK_INTERVAL * 1000):
                if descriptor == self.listener.fileno():
                    if connection := self.accept():
                        return connection
                elif descriptor in self.children:
                    self.reap(descriptor)
                else:
                    # Nobody listens there any more.
                    self.hang_up(descriptor)
            if not self.is_wanted():
                sys.exit("the socket is gone, and with it whoever could want something")

    def is_wanted(self):
        try:
            return os.stat(self.path).st_ino == self.inode
        except OSError:
            return False

    def accept(self):
        connection, _ = self.listener.accept()
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(SO_PEERCRED_FORMAT))
        if struct.unpack(SO_PEERCRED_FORMAT, credentials)[1] != 0:
            connection.close()
            return None
        # What the child waits at until the parent has said who it is: by then nobody else has the connection.
        gate, opening = os.pipe()
        try:
            pid = os.fork()
        except OSError as error:
            print(f"no fork: {error}", file=sys.stderr, flush=True)
            os.close(gate)
            os.close(opening)
            connection.close()
            return None
        if pid == 0:
            os.close(opening)
            self.forget()
            os.read(gate, 1)
            os.close(gate)
            return connection
        os.close(gate)
        try:
            connection.send(f"forked {pid}\n".encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            pass
        os.close(opening)
        handle = os.pidfd_open(pid)
        self.poll.register(handle, select.POLLIN)
        # No event but the other side's end: what is said there is the child's to read.
        self.poll.register(connection, 0)
        self.children[handle] = (pid, connection)
        self.connections[connection.fileno()] = connection
        return None

    def reap(self, handle):
        pid, connection = self.children.pop(handle)
        _, status = os.waitpid(pid, 0)
        self.poll.unregister(handle)
        os.close(handle)
        if connection.fileno() in self.connections:
            try:
                connection.send(f"ended {status}\n".encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError:
                pass
            self.hang_up(connection.fileno())

    def hang_up(self, descriptor):
        if connection := self.connections.pop(descriptor, None):
            self.poll.unregister(descriptor)
            connection.close()

    def forget(self):
        """In a child: nothing that is the parent's stays open."""
        self.listener.close()
        for handle in self.children:
            os.close(handle)
        for connection in self.connections.values():
            connection.close()


class Child:
    """Becomes what the request says."""

    def __init__(self, connection, brought, imported, missing):
        self.connection = connection
        self.brought = brought
        self.imported = imported
        self.missing = missing
        self.sockets = []
        self.ending = None

    def prepare(self):
        """Up to the moment at which the project's code may be touched. An end of the connection is the end."""
        self.connection.settimeout(PATIENCE)
        try:
            self.request = json.loads(self.hear())
            os.setsid()
            # Before its strings are written over: nothing of the C library may point to them any more.
            os.environ.clear()
            libc.clearenv()
            self.rename()
            self.redirect()
            self.take_place()
            self.mount()
            os.umask(UMASK)
            os.chdir(self.request["cwd"])
            if not self.request["network"]:
                checked(libc.unshare(CLONE_NEWNET))
            self.drop()
            self.look_at_environment()
        except (NoFork, OSError, KeyError, ValueError) as reason:
            self.say(f"no {' '.join(str(reason).split())}")
            os._exit(0)
        self.say("ready")
        if self.hear() != "go":
            os._exit(0)
        self.connection.close()
        # As after an execve(2): its files in /proc are its own. Until now others of its user could not lay hands on it.
        prctl(PR_SET_DUMPABLE, 1)

    def hear(self):
        """A line, and the descriptors that come with it."""
        line = b""
        while not line.endswith(b"\n"):
            part, descriptors, _, _ = socket.recv_fds(self.connection, LINE_PART, MOST_SOCKETS)
            self.sockets += descriptors
            if not part:
                os._exit(0)
            line += part
        return line.decode().strip()

    def say(self, text):
        try:
            self.connection.sendall(f"{text}\n".encode(), socket.MSG_NOSIGNAL)
        except OSError:
            pass

    def rename(self):
        """Writes over what the parent was started with: `ps` shows the command line of a bare start, and the mark is in the environment."""
        with open("/proc/self/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        # proc(5), fields 48 to 51; the third is the first after the name. All lie in one piece.
        begin, end_of_arguments, _, end = (int(field) for field in fields[45:49])
        mark = f"OCORE_UNIT={self.request['env']['OCORE_UNIT']}\0".encode()
        room = end - end_of_arguments - len(mark) - 1
        if begin == 0 or room <= 0:
            raise NoFork("the parent left no room for the child's name")
        # Where it does not end with its old place, the kernel shows everything up to the first zero, as one word.
        name = " ".join([self.request["python"], *self.request["args"]]).encode()[:room] + b"\0"
        ctypes.memset(begin, 0, end - begin)
        ctypes.memmove(begin, name, len(name))
        ctypes.memmove(max(end_of_arguments, begin + len(name)), mark, len(mark))

    def redirect(self):
        sys.stdout.flush()
        sys.stderr.flush()
        for path, flags, target in (
            ("/dev/null", os.O_RDONLY, 0),
            (self.request["stdout"], os.O_WRONLY | os.O_APPEND, 1),
            (self.request["stderr"], os.O_WRONLY | os.O_APPEND, 2),
        ):
            descriptor = os.open(path, flags)
            os.dup2(descriptor, target)
            os.close(descriptor)

    def take_place(self):
        """What root does for it: its control groups (`0` is the one that writes, cgroups(7)), its weight, and where it says how it ends."""
        for path in self.request["groups_to_enter"]:
            write(path, "0")
        for path, value in (("/proc/self/oom_score_adj", self.request["goes_first"]), ("/proc/self/autogroup", self.request["nice"])):
            if value:
                try:
                    write(path, value)
                except OSError:
                    pass
        if self.request["nice"]:
            os.nice(self.request["nice"])
        if self.request["ending"]:
            self.ending = os.open(self.request["ending"], os.O_WRONLY | os.O_CLOEXEC)

    def mount(self):
        """Directories of its own in the place of the machine's, in a mount namespace that is its own and sees what the machine mounts."""
        if not self.request["mounts"]:
            return
        checked(libc.unshare(CLONE_NEWNS))
        checked(libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_SLAVE), None))
        for kind, options, source, target in self.request["mounts"]:
            is_bind = options == "bind"
            flags = ctypes.c_ulong(MS_BIND if is_bind else MS_NOSUID | MS_NODEV)
            checked(libc.mount(source.encode(), target.encode(), kind.encode(), flags, None if is_bind else options.encode()))

    def drop(self):
        """For good: also what is executed from here on gains nothing."""
        uid, gid = self.request["uid"], self.request["gid"]
        os.setgroups(self.request["groups"])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        if os.getresuid() != (uid, uid, uid) or uid == 0:
            raise NoFork("the child did not become its user")

    def look_at_environment(self):
        """What the parent has imported must be what a bare start would import."""
        for name in self.request["modules"]:
            if f"odoo.addons.{name}" in sys.modules:
                raise NoFork(f"the project replaces Odoo's module {name}")
        self.layer = None
        if self.request["python"] == sys.executable:
            return
        prefix = os.path.dirname(os.path.dirname(self.request["python"]))
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.layer = os.path.join(prefix, "lib", version, "site-packages")
        for entry in os.listdir(self.layer):
            name, _, kind = entry.partition(".")
            if entry.endswith(".pth"):
                if entry not in USUAL_PTH:
                    raise NoFork(f"the project's environment runs {entry} when Python starts")
            elif not entry.endswith((".dist-info", ".egg-info")) and name != "__pycache__":
                if name in self.imported:
                    raise NoFork(f"the project's environment has its own {name}")
                if name in self.missing:
                    raise NoFork(f"the project's environment has {name}, which Odoo uses when it is there")

    def run(self):
        """Odoo's program, as if Python had just been started with it."""
        os.environ.update(self.request["env"])
        os.environ.update(self.brought)
        self.keep_sockets()
        time.tzset()
        program = self.request["args"][0]
        sys.argv = list(self.request["args"])
        sys.orig_argv = [self.request["python"], *self.request["args"]]
        if self.layer:
            self.put_on_top()
        self.request = None
        code = 1
        try:
            runpy.run_path(program, run_name="__main__")
            code = 0
        except SystemExit as end:
            code = 0 if end.code is None else end.code & 0xFF if isinstance(end.code, int) else 1
            raise
        finally:
            if self.ending is not None and os.getpid() == MYSELF:
                # In case the parent is not there to tell.
                try:
                    os.write(self.ending, f"{code}\n".encode())
                except OSError:
                    pass

    def keep_sockets(self):
        """Where they are says the environment, as after a bare start; they stay when Odoo executes itself again."""
        places = []
        for place, descriptor in zip(os.environ.get(SOCKETS, "").split(","), self.sockets):
            os.set_inheritable(descriptor, True)
            places.append(f"{place.partition(':')[0]}:{descriptor}")
        if places:
            os.environ[SOCKETS] = ",".join(places)

    def put_on_top(self):
        """As the environment's own Python would: its packages first, then the distribution's."""
        python = self.request["python"]
        before = len(sys.path)
        site.addsitedir(self.layer)
        added, sys.path[before:] = sys.path[before:], []
        first = next((place for place, path in enumerate(sys.path) if path.endswith("-packages")), len(sys.path))
        sys.path[first:first] = added
        sys.executable = python
        sys.prefix = sys.exec_prefix = os.path.dirname(os.path.dirname(python))


if __name__ == "__main__":
    SOCKET, PROGRAM = sys.argv[1:3]
    gc.disable()
    before = dict(os.environ)
    missing = warm_up(PROGRAM, set(sys.argv[4].split(",")) if "--without" in sys.argv else set())
    list_modules_once()
    # What the imports themselves have set, like the time zone.
    brought = {name: value for name, value in os.environ.items() if before.get(name) != value}
    if len(os.listdir("/proc/self/task")) != 1:
        sys.exit("something that was imported runs a thread, and a fork would lose it")
    # A child that looked through all modules would write into each of their names, and have a page of its own for it.
    imported = {name.partition(".")[0] for name in sys.modules}
    gc.collect()
    gaps = fill_gaps()
    gc.freeze()
    gc.enable()
    UMASK = os.umask(0o022)
    os.umask(UMASK)
    child = Child(Nursery(SOCKET).serve(), brought, imported, missing)
    MYSELF = os.getpid()
    child.prepare()
    child.run()
