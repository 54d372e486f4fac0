"""Tries everything that PLACES names, by itself and by the way that pip has, and looks for secrets."""
import glob
import http.client
import json
import os
import socket
import urllib.parse

PLACES = json.loads("""@PLACES@""")


def directly(kind, address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as probe:
        probe.settimeout(5)
        probe.connect((address, port))
        probe.send(b"x")


def through_the_index(address, port, method):
    there = urllib.parse.urlsplit(os.environ.get("PIP_INDEX_URL", "") or "http://127.0.0.1:9/")
    connection = http.client.HTTPConnection(there.hostname, there.port or 80, timeout=20)
    host = f"[{address}]" if ":" in address else address
    connection.request(method, f"{host}:{port}" if method == "CONNECT" else f"http://{host}:{port}/")
    status = connection.getresponse().status
    if status >= 400:
        raise OSError(f"status {status}")


def tried(what, *arguments):
    try:
        what(*arguments)
        return "reached"
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"


def attack():
    found = {}
    for kind, address, port in PLACES:
        found[f"{kind} {address} {port}"] = tried(directly, kind, address, port)
        if kind == "tcp":
            for method in ("CONNECT", "GET"):
                found[f"{method} {address} {port}"] = tried(through_the_index, address, port, method)
    seen = [dict(os.environ)]
    for path in [*glob.glob("/proc/[0-9]*/environ"), *glob.glob("/proc/[0-9]*/cmdline"), *glob.glob("/etc/pip*"), *glob.glob(os.environ["HOME"] + "/*")]:
        try:
            with open(path, errors="replace") as file:
                seen.append(file.read())
        except OSError:
            pass
    return {"places": found, "seen": json.dumps(seen), "uid": os.getuid(), "groups": os.getgroups()}
