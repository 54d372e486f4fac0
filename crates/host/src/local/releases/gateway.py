"""The one way from a build to the network.

A build runs in a network namespace of its own, in which nothing is but this program's listener. It asks here for packages, as it would ask an index; names
and passwords of indexes and proxies are known here alone. Other hosts are reached only when they were named, through CONNECT.

Standard input: one line of JSON, see `Wanted` in gateway.rs; then it stays open, and its end is ours. Standard output: `ready <descriptor of the namespace>`,
later `unreachable <host> <reason>` and `refused <host>:<port>`, each once.

Nothing of a project is run here. What comes from a build is a request line, a few headers, and bytes that are passed on.
"""

import base64
import ctypes
import fcntl
import html
import html.parser
import http.client
import http.server
import ipaddress
import json
import os
import re
import select
import socket
import ssl
import struct
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request

CLONE_NEWNET = 0x40000000
PR_SET_NO_NEW_PRIVS = 38
SIOCSIFFLAGS = 0x8914
IFF_UP_AND_RUNNING = 0x41
PIECE = 1 << 16
# Bytes. The largest page of the public index has some 30 MB.
PAGE_LIMIT = 128 << 20
# At once; pip asks one after the other.
REQUESTS = 32
PAGES = 2
LINKS = 2_000_000
SAID = 20
# Seconds.
TIMEOUT = 60
IDLE = 600

PAGE_KINDS = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html; q=0.2, text/html; q=0.1"
PROJECT = re.compile(r"/index/([0-9]+)/([A-Za-z0-9][A-Za-z0-9._-]*)/?")
LINKED = re.compile(r"/links/([0-9]+)/?")
FILE = re.compile(r"/files/([0-9]+)/([^/]+)")

libc = ctypes.CDLL(None, use_errno=True)


def checked(result):
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def listen_apart(address):
    """A listener in a new network namespace, and a descriptor of that."""
    ours = os.open("/proc/self/ns/net", os.O_RDONLY)
    checked(libc.unshare(CLONE_NEWNET))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP_AND_RUNNING))
    listener = socket.create_server(address, backlog=128)
    namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
    checked(libc.setns(ours, CLONE_NEWNET))
    os.close(ours)
    return listener, namespace


def drop(user):
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


class Said:
    """What the other side is told, each thing once, and not without end."""

    def __init__(self):
        self.lock = threading.Lock()
        self.lines = set()

    def say(self, line):
        line = " ".join(line.split())[:300]
        with self.lock:
            if line not in self.lines and len(self.lines) < SAID:
                self.lines.add(line)
                print(line, flush=True)


class Refused(Exception):
    pass


def port_of(parts):
    return parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)


def origin(url):
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), port_of(parts)


def without_user(url):
    """The address, and the header that its name and password make."""
    parts = urllib.parse.urlsplit(url)
    if parts.username is None and parts.password is None:
        return url, None
    user = ":".join(urllib.parse.unquote(word or "") for word in (parts.username, parts.password))
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return plain, "Basic " + base64.b64encode(user.encode()).decode()


class Upstream:
    """The operator's indexes, and what they link to."""

    def __init__(self, wanted):
        self.passwords = {}
        self.indexes = [self.known(url).rstrip("/") + "/" for url in wanted["indexes"]]
        self.pages = [self.known(url) for url in wanted["pages"]]
        strict = ssl.create_default_context(cafile=wanted["certificate"])
        loose = ssl._create_unverified_context()
        for context in (strict, loose):
            if wanted["client_certificate"]:
                context.load_cert_chain(wanted["client_certificate"])
        trusted = {host.lower() for host in wanted["trusted"]}

        class Https(urllib.request.HTTPSHandler):
            def https_open(self, request):
                host = (request._tunnel_host or request.host).lower()
                context = loose if host in trusted or host.rpartition(":")[0] in trusted else strict
                return self.do_open(http.client.HTTPSConnection, request, context=context)

        upstream = self

        class Redirects(urllib.request.HTTPRedirectHandler):
            def redirect_request(self, request, *arguments):
                again = super().redirect_request(request, *arguments)
                if again is not None and again.type not in ("http", "https"):
                    raise urllib.error.URLError("it leads to an address of another kind")
                return again and upstream.with_password(again)

        self.opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(wanted["proxies"]),
            urllib.request.HTTPHandler(),
            Https(context=strict),
            Redirects(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
        ):
            self.opener.add_handler(handler)
        self.opener.addheaders = [("User-Agent", "ocore")]
        self.lock = threading.Lock()
        self.numbers = {}
        self.links = []

    def known(self, url):
        plain, header = without_user(url)
        if header:
            self.passwords[origin(plain)] = header
        return plain

    def with_password(self, request):
        header = self.passwords.get(origin(request.full_url))
        if header:
            # Not for whoever it redirects to.
            request.add_unredirected_header("Authorization", header)
        return request

    def open(self, url, headers, method="GET"):
        request = urllib.request.Request(url, headers=headers, method=method)
        return self.opener.open(self.with_password(request), timeout=TIMEOUT)

    def local(self, page, link):
        """The place here that stands for a link of a page."""
        address, fragment = urllib.parse.urldefrag(urllib.parse.urljoin(page, link))
        parts = urllib.parse.urlsplit(address)
        if parts.scheme not in ("http", "https"):
            return None
        address, header = without_user(address)
        name = urllib.parse.unquote(parts.path.rpartition("/")[2])
        if not name:
            return None
        with self.lock:
            number = self.numbers.get(address)
            if number is None:
                if len(self.links) >= LINKS:
                    return None
                number = self.numbers[address] = len(self.links)
                self.links.append(address)
                if header:
                    self.passwords.setdefault(origin(address), header)
        return f"/files/{number}/{urllib.parse.quote(name, safe='')}" + (f"#{fragment}" if fragment else "")


class Page(html.parser.HTMLParser):
    """A page of links, with nothing else left of it."""

    def __init__(self, upstream, address):
        super().__init__(convert_charrefs=True)
        self.upstream = upstream
        self.address = address
        self.parts = ["<!DOCTYPE html>\n<html><head><meta name=\"pypi:repository-version\" content=\"1.0\"></head><body>\n"]
        self.is_open = False

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "base" and values.get("href"):
            self.address = urllib.parse.urljoin(self.address, values["href"])
        if tag != "a" or not values.get("href"):
            return
        place = self.upstream.local(self.address, values["href"])
        if place is None:
            return
        kept = {"href": place} | {name: value for name, value in values.items() if name.startswith("data-")}
        words = [name if value is None else f'{name}="{html.escape(value)}"' for name, value in kept.items()]
        self.parts.append(f"<a {' '.join(words)}>")
        self.is_open = True

    def handle_endtag(self, tag):
        if tag == "a" and self.is_open:
            self.parts.append("</a><br>\n")
            self.is_open = False

    def handle_data(self, data):
        if self.is_open:
            self.parts.append(html.escape(data))

    def text(self):
        return "".join([*self.parts, "</body></html>\n"])


class Hosts:
    """Which other hosts a build may reach, and how they are reached."""

    def __init__(self, wanted):
        self.named = {(place["host"].lower(), place["port"]) for place in wanted["hosts"]}
        self.allowed = [(place["host"].lower(), place["port"]) for place in wanted["allow"]]
        self.any_public = wanted["any_public"]
        self.networks = [(ipaddress.ip_network(place["host"]), place["port"]) for place in wanted["networks"]]
        self.closed = [ipaddress.ip_network(network) for network in wanted["closed"]]
        self.proxies = wanted["proxies"]

    def is_meant(self, host, port):
        """By the operator, wherever it is."""
        return any(host == name and number in (None, port) for name, number in self.allowed)

    def is_in(self, address, port):
        return any(address in network and number in (None, port) for network, number in self.networks)

    def is_public(self, address):
        if any(address in network for network in self.closed):
            return False
        try:
            # An address of this machine, whatever it looks like.
            with socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
                probe.bind((str(address), 0))
            return False
        except OSError:
            return True

    def connect(self, host, port):
        host = host.lower().rstrip(".")
        is_meant = self.is_meant(host, port)
        is_named = (host, port) in self.named or (self.any_public and port in (80, 443))
        try:
            literal = ipaddress.ip_address(host)
            is_meant = is_meant or self.is_in(literal, port)
        except ValueError:
            literal = None
        proxy = self.proxies.get("https")
        if not is_meant and not is_named and not (literal is None and self.networks):
            raise Refused
        if proxy and literal is None and not urllib.request.proxy_bypass(f"{host}:{port}"):
            # Names are the proxy's to look up.
            if not is_meant and not is_named:
                raise Refused
            return self.through(proxy, host, port)
        reached = None
        for *_, found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            address = ipaddress.ip_address(found[0].partition("%")[0])
            address = getattr(address, "ipv4_mapped", None) or address
            if not (is_meant or self.is_in(address, port) or (is_named and self.is_public(address))):
                continue
            try:
                return socket.create_connection((str(address), port), timeout=TIMEOUT)
            except OSError as error:
                reached = error
        raise reached or Refused

    def through(self, proxy, host, port):
        plain, header = without_user(proxy)
        parts = urllib.parse.urlsplit(plain)
        connection = socket.create_connection((parts.hostname, port_of(parts)), timeout=TIMEOUT)
        if parts.scheme == "https":
            connection = ssl.create_default_context().wrap_socket(connection, server_hostname=parts.hostname)
        words = f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n"
        words += f"Proxy-Authorization: {header}\r\n" if header else ""
        connection.sendall((words + "\r\n").encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            piece = connection.recv(1)
            if not piece or len(head) > PIECE:
                raise OSError("the proxy gave no answer")
            head += piece
        if head.split(b" ", 2)[1:2] != [b"200"]:
            raise OSError("the proxy refused")
        return connection


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # What follows a head is passed on unread.
    rbufsize = 0
    timeout = IDLE
    upstream = hosts = said = None
    pages = threading.Semaphore(PAGES)

    def log_message(self, *_):
        pass

    def do_GET(self):
        if "://" in self.path:
            return self.forward()
        path = self.path.partition("?")[0]
        if (found := PROJECT.fullmatch(path)) and int(found[1]) < len(self.upstream.indexes):
            return self.page(self.upstream.indexes[int(found[1])] + found[2] + "/")
        if (found := LINKED.fullmatch(path)) and int(found[1]) < len(self.upstream.pages):
            return self.page(self.upstream.pages[int(found[1])])
        if (found := FILE.fullmatch(path)) and int(found[1]) < len(self.upstream.links):
            address = self.upstream.links[int(found[1])]
            # Indexes serve a package's description beside it (PEP 658).
            is_description = path.endswith(".metadata") and not urllib.parse.urlsplit(address).path.endswith(".metadata")
            return self.file(address + ".metadata" if is_description else address)
        return self.answer(404, b"there is no such thing here\n")

    do_HEAD = do_GET

    def do_POST(self):
        if "://" in self.path:
            return self.forward()
        return self.answer(405, b"nothing can be changed here\n")

    def do_CONNECT(self):
        host, _, port = self.path.rpartition(":")
        if not port.isdigit():
            return self.answer(400, b"this is no place\n")
        if connection := self.connect(host.strip("[]"), int(port)):
            self.send_response_only(200, "Connection established")
            self.end_headers()
            self.pass_on(connection)

    def forward(self):
        """A request to a host without TLS."""
        parts = urllib.parse.urlsplit(self.path)
        if parts.scheme != "http" or not parts.hostname:
            return self.answer(400, b"only addresses with http or https are reached\n")
        if connection := self.connect(parts.hostname, port_of(parts)):
            path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
            head = [f"{self.command} {path} HTTP/1.1", f"Host: {parts.netloc.rpartition('@')[2]}", "Connection: close"]
            left_out = ("host", "connection", "proxy-connection", "proxy-authorization")
            head += [f"{name}: {value}" for name, value in self.headers.items() if name.lower() not in left_out]
            connection.sendall(("\r\n".join(head) + "\r\n\r\n").encode("latin-1"))
            self.pass_on(connection)

    def connect(self, host, port):
        self.close_connection = True
        try:
            return self.hosts.connect(host, port)
        except Refused:
            self.said.say(f"refused {host}:{port}")
            self.answer(403, b"a build does not reach this host\n")
        except (OSError, ValueError, UnicodeError) as error:
            self.said.say(f"unreachable {host} {error}")
            self.answer(504, b"the host cannot be reached\n")
        return None

    def pass_on(self, other):
        self.close_connection = True
        with other:
            other.setblocking(True)
            ways = {self.connection: other, other: self.connection}
            while ways:
                ready, _, _ = select.select(list(ways), [], [], IDLE)
                if not ready:
                    return
                for source in ready:
                    piece = source.recv(PIECE)
                    if piece:
                        ways[source].sendall(piece)
                        continue
                    try:
                        ways.pop(source).shutdown(socket.SHUT_WR)
                    except OSError:
                        return

    def page(self, address):
        with self.pages:
            return self.rewrite(address)

    def rewrite(self, address):
        try:
            with self.upstream.open(address, {"Accept": self.headers.get("Accept", PAGE_KINDS)}) as answer:
                kind = answer.headers.get("Content-Type", "text/html")
                body = answer.read(PAGE_LIMIT + 1)
                charset = answer.headers.get_content_charset("utf-8")
                address = answer.geturl()
        except Exception as error:
            return self.failed(address, error)
        if len(body) > PAGE_LIMIT:
            return self.failed(address, ValueError("its page of links is too large"))
        try:
            if kind.startswith("application/vnd.pypi.simple.v1+json"):
                return self.answer(200, self.rewritten(json.loads(body), address), kind)
            parser = Page(self.upstream, address)
            parser.feed(body.decode(charset, "replace"))
            parser.close()
            kind = kind if kind.startswith("application/vnd.pypi.simple.v1+html") else "text/html; charset=utf-8"
            return self.answer(200, parser.text().encode(), kind)
        except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
            return self.failed(address, ValueError(f"its page of links cannot be read ({type(error).__name__})"))

    def rewritten(self, page, address):
        files = []
        for entry in page["files"]:
            place = self.upstream.local(address, entry["url"])
            if place is not None:
                files.append(entry | {"url": place})
        return json.dumps(page | {"files": files}).encode()

    def file(self, address):
        try:
            answer = self.upstream.open(address, {"Accept-Encoding": "identity"}, self.command)
        except Exception as error:
            return self.failed(address, error)
        with answer:
            length = answer.headers.get("Content-Length")
            self.send_response(200)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "application/octet-stream"))
            if length is not None:
                self.send_header("Content-Length", length)
            else:
                self.close_connection = True
                self.send_header("Connection", "close")
            self.end_headers()
            if self.command == "HEAD":
                return None
            left = int(length) if length is not None else None
            while left is None or left > 0:
                piece = answer.read(PIECE if left is None else min(PIECE, left))
                if not piece:
                    # Cut off: so is ours.
                    self.close_connection = True
                    return None
                self.wfile.write(piece)
                left = None if left is None else left - len(piece)
        return None

    def failed(self, address, error):
        host = urllib.parse.urlsplit(address).hostname
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            if error.code in (401, 403, 407):
                self.said.say(f"unreachable {host} it does not accept our name and password ({error.code})")
            elif error.code >= 500:
                self.said.say(f"unreachable {host} it answers with {error.code}")
            return self.answer(error.code if error.code < 500 else 504, b"the index does not answer with this\n")
        reason = getattr(error, "reason", error)
        self.said.say(f"unreachable {host} {reason}")
        return self.answer(504, b"the index cannot be reached\n")

    def answer(self, status, body, kind="text/plain"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listener):
        super().__init__(listener.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.room = threading.BoundedSemaphore(REQUESTS)

    def process_request(self, request, address):
        if self.room.acquire(blocking=False):
            super().process_request(request, address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request, address):
        try:
            super().process_request_thread(request, address)
        finally:
            self.room.release()

    def handle_error(self, *_):
        # Somebody hung up.
        pass


def main():
    wanted = json.loads(sys.stdin.readline())
    # Where the library asks which hosts need no proxy.
    os.environ.clear()
    os.environ["no_proxy"] = wanted["without_proxy"]
    # Certificates may be root's alone.
    Handler.upstream = Upstream(wanted)
    Handler.hosts = Hosts(wanted)
    Handler.said = Said()
    listener, namespace = listen_apart((wanted["address"], wanted["port"]))
    drop(wanted["user"])
    server = Server(listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"ready {namespace}", flush=True)
    sys.stdin.read()


main()
