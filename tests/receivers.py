"""Real receivers of what we send: a web server and an SMTP server, each on a free port of this machine."""

import base64
import contextlib
import json
import socketserver
import ssl
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast


@dataclass
class Web:
    """What was posted and answered with 200; `heads` are the heads of all requests."""

    url: str = ""
    got: list[dict[str, Any]] = field(default_factory=list)
    heads: list[dict[str, str]] = field(default_factory=list)


@contextlib.contextmanager
def web(*statuses: int) -> Iterator[Web]:
    """A web server that keeps what is posted to it; it answers with these first, and then with 200."""
    kept, first = Web(), iter(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            kept.heads.append({name.lower(): value for name, value in self.headers.items()})
            status = next(first, 200)
            if status == 200:
                kept.got.append(json.loads(body))
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("location", "/elsewhere")
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with _running(server):
        kept.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
        yield kept


@dataclass
class Letter:
    """A letter as it came: from whom to whom by the dialogue, its text, and how its sender came in."""

    sender: str
    to: list[str]
    text: EmailMessage
    is_encrypted: bool
    user: str


@dataclass
class Post:
    """What an SMTP server took in; `dialogue` is what clients said, each line."""

    port: int = 0
    got: list[Letter] = field(default_factory=list)
    dialogue: list[str] = field(default_factory=list)


@contextlib.contextmanager
def post(
    certificate: tuple[str, str] | None = None,
    *,
    from_the_start: bool = False,
    users: dict[str, str] | None = None,
    refuses: Iterable[str] = (),
    busy: int = 0,
    bye: str = "221 bye",
) -> Iterator[Post]:
    """An SMTP server (RFC 5321) that keeps what it takes in.

    With a certificate it offers STARTTLS (RFC 3207), or is encrypted from the start; with `users` it takes
    letters only from who logs in (RFC 4954), encrypted. It `refuses` recipients, is `busy` that often, and
    says `bye`.
    """
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
    kept, times = Post(), iter(range(busy))

    class Handler(socketserver.StreamRequestHandler):
        user, sender, is_encrypted = "", "", from_the_start
        to: list[str]

        def encrypt(self) -> None:
            assert context is not None
            self.request = context.wrap_socket(self.request, server_side=True)
            self.connection, self.is_encrypted = self.request, True
            self.rfile, self.wfile = self.request.makefile("rb"), self.request.makefile("wb", buffering=0)

        def say(self, *lines: str) -> None:
            self.wfile.write("".join(f"{line}\r\n" for line in lines).encode())

        def handle(self) -> None:
            # A client that does not trust the certificate goes, as does one that has had enough.
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                if from_the_start:
                    self.encrypt()
                self.say("220 here")
                while line := self.rfile.readline().decode().rstrip("\r\n"):
                    kept.dialogue.append(line)
                    word, _, rest = line.partition(" ")
                    if word.upper() == "QUIT":
                        self.say(bye)
                        return
                    getattr(self, f"on_{word.lower()}", self.unknown)(rest)

        def unknown(self, rest: str) -> None:
            self.say("502 not known")

        def on_ehlo(self, rest: str) -> None:
            offers = ["STARTTLS"] if context is not None and not self.is_encrypted else []
            offers += ["AUTH PLAIN"] if users and self.is_encrypted else []
            self.say("250-here", *(f"250-{offer}" for offer in offers), "250 8BITMIME")

        def on_starttls(self, rest: str) -> None:
            self.say("220 go on")
            self.encrypt()

        def on_auth(self, rest: str) -> None:
            _, user, password = base64.b64decode(rest.split()[1]).decode().split("\0")
            if (users or {}).get(user) != password:
                self.say(f"535 {password} is wrong")
                return
            self.user = user
            self.say("235 welcome")

        def on_mail(self, rest: str) -> None:
            if users and not self.user:
                self.say("530 log in")
            elif next(times, None) is not None:
                self.say("451 busy")
            else:
                self.sender, self.to = rest.partition("<")[2].partition(">")[0], []
                self.say("250 ok")

        def on_rcpt(self, rest: str) -> None:
            to = rest.partition("<")[2].partition(">")[0]
            if to in refuses:
                self.say("550 nobody here")
                return
            self.to.append(to)
            self.say("250 ok")

        def on_data(self, rest: str) -> None:
            self.say("354 go on")
            lines = []
            while (line := self.rfile.readline()) != b".\r\n":
                lines.append(line.removeprefix(b"."))
            text = cast(EmailMessage, message_from_bytes(b"".join(lines), policy=default))
            kept.got.append(Letter(self.sender, self.to, text, self.is_encrypted, self.user))
            self.say("250 taken")

        def on_rset(self, rest: str) -> None:
            self.say("250 ok")

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    with _running(server):
        kept.port = server.server_address[1]
        yield kept


@contextlib.contextmanager
def _running(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
