"""Our own front end, with real clients; in place of Serve a server that tells what it was asked."""

import http.client
import http.server
import itertools
import json
import re
import secrets
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlops_ray import config, keys
from mlops_ray.client import Client
from mlops_ray.cluster import front, local
from mlops_ray.cluster.local import LocalCluster
from mlops_ray.config import Project
from mlops_ray.errors import ClusterError, ConfigError, MlopsError
from mlops_ray.serving.admission import MOST_MS
from mlops_ray.storage import Storage
from tests.cluster import certificates
from tests.conftest import EXAMPLE, require
from tests.servers import free_port, until
from tests.serving import packages

PATIENCE_S = 60.0


class Serve(http.server.BaseHTTPRequestHandler):
    """Answers with what it was asked; by its path otherwise."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        asked = [[name.lower(), value] for name, value in self.headers.items()]
        status, kind, body = {
            "/page": (500, "text/plain", b"Internal Server Error"),
            "/broken": (500, "application/json", b'{"error":"internal error"}'),
        }.get(self.path, (200, "application/json", json.dumps(asked).encode()))
        if self.path == "/never":
            self.server.gone.wait()  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.send_header("set-cookie", "mlops_session=x; HttpOnly")
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = b'{"predictions":[1.0],"model_version":"1","id":"a"}'
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    """A cluster of which there is the front end alone; what carries its marker is ended."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Serve)
    server.gone = threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "temp").mkdir()
    made = LocalCluster(
        secrets.token_hex(8), 0, "127.0.0.1:20001", "", server.server_port, {}, str(tmp_path / "temp")
    )
    try:
        yield made
    finally:
        server.gone.set()  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()
        while left := local.carrying(made.marker):
            for process in left:
                process.kill()
            psutil.wait_procs(left, timeout=1)


def project(storage: Path, **listen: Any) -> Project:
    return Project.model_validate(
        packages.PROJECT | {"storage": str(storage / ".mlops"), "serving": {"listen": listen}}
    )


@pytest.fixture
def secure(tmp_path: Path) -> Project:
    certificate, key = certificates.write(tmp_path)
    return project(tmp_path, port=free_port(), certificate=certificate, key=key)


def context(of: Project) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=of.serving.listen.certificate)


def ask(
    of: Project, path: str = "/", *, headers: dict[str, str] | None = None
) -> tuple[int, http.client.HTTPMessage, Any]:
    listen = of.serving.listen
    assert listen.port is not None
    connection: http.client.HTTPConnection = (
        http.client.HTTPSConnection("127.0.0.1", listen.port, timeout=PATIENCE_S, context=context(of))
        if listen.certificate
        else http.client.HTTPConnection("127.0.0.1", listen.port, timeout=PATIENCE_S)
    )
    try:
        connection.request("GET", path, headers=headers or {})
        reply = connection.getresponse()
        return reply.status, reply.headers, json.loads(reply.read())
    finally:
        connection.close()


def answers(of: Project) -> bool:
    try:
        return ask(of)[0] == 200
    except OSError:
        return False


def raw(of: Project, sent: bytes) -> tuple[int, bytes]:
    """Status and body of what is answered to these bytes."""
    with (
        socket.create_connection(("127.0.0.1", of.serving.listen.port or 0), PATIENCE_S) as plain,
        context(of).wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        secured.sendall(sent)
        reply = http.client.HTTPResponse(secured)
        reply.begin()
        return reply.status, reply.read()


def test_clients_reach_the_service_by_tls_and_none_without(cluster: LocalCluster, secure: Project) -> None:
    front.apply(secure, cluster)
    url = front.url(secure, cluster)
    assert url == f"https://127.0.0.1:{secure.serving.listen.port}"
    client = Client(url, packages.NAME, key="k", timeout_s=PATIENCE_S, context=context(secure))
    assert client.predict([{"load": 1.0}]).predictions.tolist() == [1.0]
    client.close()
    for version in ("--http1.1", "--http2"):
        command = [
            require("curl"),
            "-sS",
            version,
            "--cacert",
            str(secure.serving.listen.certificate),
            f"{url}/a",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert ["x-forwarded-proto", "https"] in json.loads(done.stdout), done.stderr
    with pytest.raises((http.client.HTTPException, OSError)):
        ask(project(Path(cluster.temp_dir), port=secure.serving.listen.port))


def test_old_tls_is_refused(cluster: LocalCluster, secure: Project) -> None:
    front.apply(secure, cluster)
    old = context(secure)
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", secure.serving.listen.port or 0), PATIENCE_S) as plain,
        pytest.raises(ssl.SSLError, match=r"(?i)protocol"),
    ):
        old.wrap_socket(plain, server_hostname="localhost")


def test_what_callers_have_no_business_to_say_does_not_reach_serve(
    cluster: LocalCluster, secure: Project
) -> None:
    front.apply(secure, cluster)
    control = {
        "X-Request-Timeout-Seconds": "0.001",
        "X-Request-Disconnect-Disabled": "?1",
        "serve_multiplexed_model_id": "a",
        "Serve-Multiplexed-Model-Id": "a",
        "X-Session-Id": "a",
        "x_session_id": "a",
        "X-Serve-Router-Replica": "a",
    }
    spoofed = {"X-Forwarded-For": "9.9.9.9", "X-Forwarded-Proto": "http", "Forwarded": "for=9.9.9.9"}
    kept = {"authorization": "Bearer k", "x-request-id": "mine", "x-timeout-ms": "50", "traceparent": "00-a"}
    _, headers, asked = ask(secure, headers=control | spoofed | kept)
    hop = {"host", "accept-encoding", "connection"}
    said = {name: value for name, value in asked if name not in hop}
    assert said == kept | {"x-forwarded-proto": "https", "x-forwarded-for": "127.0.0.1"}
    assert headers["set-cookie"] == "mlops_session=x; HttpOnly; Secure"


def test_the_names_of_serve_s_control_headers_are_those_that_are_kept_out() -> None:
    from ray.serve._private import constants

    names = [getattr(constants, name) for name in dir(constants) if name.endswith("_HEADER")]
    assert len(names) >= 3
    names += [constants.SERVE_MULTIPLEXED_MODEL_ID, constants.SERVE_SESSION_ID]
    names += [f"{constants.SERVE_INGRESS_ROUTER_HEADER_PREFIX}x"]
    # The request's id is the caller's to choose.
    let_in = {name for name in names if not re.match(front.CONTROL, name)}
    assert let_in == {constants.SERVE_HTTP_REQUEST_ID_HEADER}


def test_where_a_proxy_ends_tls_its_word_is_taken(cluster: LocalCluster, tmp_path: Path) -> None:
    behind = project(tmp_path, host="0.0.0.0", port=free_port(), tls="elsewhere")
    front.apply(behind, cluster)
    assert front.url(behind, cluster) == f"http://{socket.gethostname()}:{behind.serving.listen.port}"
    said = {"X-Forwarded-For": "9.9.9.9", "X-Forwarded-Proto": "https", "X-Session-Id": "a"}
    names = dict(ask(behind, headers=said)[2])
    assert (names["x-forwarded-for"], names["x-forwarded-proto"]) == ("9.9.9.9", "https")
    assert "x-session-id" not in names


def test_who_may_wait_for_ten_minutes_is_waited_for() -> None:
    assert front.ANSWER_S * 1000 > MOST_MS


def test_errors_are_in_the_protocol_s_form(
    cluster: LocalCluster, secure: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "SLOW_S", 1)
    monkeypatch.setattr(front, "ANSWER_S", 1)
    front.apply(secure, cluster)
    long = {"error": "the head is too long"}
    assert ask(secure, headers={"x": "a" * 20_000})[::2] == (431, long)
    assert ask(secure, f"/{'a' * 3_000}")[::2] == (431, long)
    half = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{"
    status, document = raw(secure, half)
    assert (status, json.loads(document)) == (408, {"error": front.SAID[408]})
    for status, odd in {400: b"nonsense\r\n\r\n", 408: b"GET / HTTP/1.1\r\nhost:"}.items():
        assert raw(secure, odd)[0] == status
    status, headers, document = ask(secure, "/page")
    assert (status, headers["retry-after"], document) == (503, "1", {"error": front.SAID[500]})
    assert ask(secure, "/broken")[::2] == (500, {"error": "internal error"})
    assert ask(secure, "/never")[::2] == (504, {"error": front.SAID[504]})
    for path in ("/-/routes", "/-/healthz"):
        assert ask(secure, path)[::2] == (404, {"error": "no such path"})


def test_while_serve_is_away_callers_are_told_to_come_again(cluster: LocalCluster, secure: Project) -> None:
    front.apply(secure, replace(cluster, http_port=free_port()))
    status, headers, document = ask(secure)
    assert (status, headers["retry-after"], document) == (503, "1", {"error": front.SAID[503]})


def test_a_renewed_certificate_is_taken_over_and_no_request_is_dropped(
    cluster: LocalCluster, secure: Project, tmp_path: Path
) -> None:
    front.apply(secure, cluster)
    listen = secure.serving.listen
    before, ended, statuses = context(secure), threading.Event(), []

    def go_on() -> None:
        while not ended.is_set():
            statuses.append(ask(secure)[0])

    old = Path(str(listen.certificate)).read_text()
    other = certificates.write(tmp_path, "other")
    # Callers trust both while it is renewed.
    Path(str(listen.certificate)).write_text(Path(other[0]).read_text() + old)
    caller = threading.Thread(target=go_on)
    caller.start()
    until(lambda: statuses)
    Path(str(listen.key)).write_text(Path(other[1]).read_text())
    front.apply(secure, cluster)
    asked = len(statuses)
    until(lambda: len(statuses) > asked + 3)
    ended.set()
    caller.join()
    assert set(statuses) == {200}
    with (
        socket.create_connection(("127.0.0.1", listen.port or 0), PATIENCE_S) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        before.wrap_socket(plain, server_hostname="localhost")


def test_it_is_back_when_it_was_killed(cluster: LocalCluster, secure: Project) -> None:
    front.apply(secure, cluster)
    for _ in range(2):
        found = [p for p in local.carrying(cluster.marker) if p.info["name"] == "haproxy"]
        for process in found:
            process.kill()
        psutil.wait_procs(found, timeout=PATIENCE_S)
        until(lambda: answers(secure))


def test_it_ends_when_the_project_says_so(cluster: LocalCluster, secure: Project, tmp_path: Path) -> None:
    assert front.apply(secure, cluster) == []
    assert local.carrying(cluster.marker)
    front.apply(project(tmp_path, port=cluster.http_port), cluster)
    until(lambda: not local.carrying(cluster.marker))
    with pytest.raises(ClusterError, match=rf"the service runs on port {cluster.http_port}: for port 1,"):
        front.apply(project(tmp_path, port=1), cluster)


def test_a_port_that_is_in_use_is_told_and_nothing_is_left(
    cluster: LocalCluster, secure: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "START_S", 1.0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", secure.serving.listen.port or 0))
        other.listen()
        with pytest.raises(ClusterError, match=r"(?s)does not answer on 127\.0\.0\.1:.*cannot bind"):
            front.apply(secure, cluster)
    until(lambda: not local.carrying(cluster.marker))


# ---------------------------------------------------------------- who may come in


def listening(listen: str) -> str:
    """The example's project file, which says this of where it listens."""
    return EXAMPLE.read_text().replace("\nserving:", f"\nserving:\n  listen: {listen}", 1)


def said_of(what: Callable[[], object]) -> str:
    try:
        what()
    except MlopsError as error:
        return str(error)
    return ""


MATRIX = list(
    itertools.product(("127.0.0.1", "0.0.0.0"), (False, True), (False, True), ("here", "none", "elsewhere"))
)


@pytest.mark.parametrize(("host", "has_key", "has_token", "tls"), MATRIX)
def test_beyond_this_machine_nothing_listens_without_tls_a_key_and_a_token(
    host: str,
    has_key: bool,
    has_token: bool,
    tls: str,
    storage: Storage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token" if has_token else "disabled")
    keys.ensure_local(storage)
    if has_key:
        keys.add(storage, "web", "predict")
    listen = {"host": host}
    if tls == "here":
        listen |= dict(zip(("certificate", "key"), certificates.write(tmp_path), strict=True))
    elif tls == "elsewhere":
        listen["tls"] = tls
    file = tmp_path / "project.yaml"
    file.write_text(listening(json.dumps(listen)))
    said = said_of(lambda: front.require_safe(config.load(file, {}), storage))
    if host == "127.0.0.1" or (has_key and has_token and tls != "none"):
        assert said == ""
    elif tls == "none":
        assert "plain HTTP on 0.0.0.0 shows keys and rows to the network" in said
    elif not has_key:
        assert "before callers have a key of their own: mlops-ray key add" in said
    else:
        assert "while RAY_AUTH_MODE is 'disabled'" in said


@pytest.mark.parametrize(("status", "is_refused"), [(401, False), (200, True)])
def test_a_cluster_that_asks_for_no_token_is_refused(
    status: int, is_refused: bool, cluster: LocalCluster, tmp_path: Path
) -> None:
    class Dashboard(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        asked = replace(cluster, dashboard=f"http://127.0.0.1:{server.server_port}")
        behind = project(tmp_path, host="0.0.0.0", tls="elsewhere")
        assert bool(said_of(lambda: front.require_token(behind, asked))) == is_refused
        assert said_of(lambda: front.require_token(project(tmp_path), asked)) == ""
        server.shutdown()


def test_a_certificate_that_does_not_fit_is_told_before_anything_starts(
    storage: Storage, tmp_path: Path
) -> None:
    certificate, key = certificates.write(tmp_path)
    _, other = certificates.write(tmp_path, "other")
    ended, its_key = certificates.write(tmp_path, "ended", days=-1)
    locked, passphrase = certificates.write(tmp_path, "locked", passphrase=b"x")
    shown = tmp_path / "shown.key"
    shown.write_text(Path(key).read_text())
    shown.chmod(0o644)
    nothing = tmp_path / "nothing"
    nothing.write_text("x")
    nothing.chmod(0o600)
    absent = str(tmp_path / "absent")
    for pair, words in {
        (certificate, other): f"{other} is not the key of the certificate {certificate}",
        (absent, key): f"cannot read {absent}: No such file or directory",
        (certificate, absent): f"cannot read {absent}: No such file or directory",
        (ended, its_key): f"the certificate {ended} ended on ",
        (locked, passphrase): f"{passphrase} is no private key in PEM without a passphrase",
        (certificate, str(nothing)): f"{nothing} is no private key in PEM without a passphrase",
        (str(nothing), key): f"{nothing} is no certificate in PEM",
        (certificate, str(shown)): f"others may read or change the key {shown}: chmod 600 it",
    }.items():
        said = said_of(
            lambda pair=pair: front.require_safe(project(tmp_path, certificate=pair[0], key=pair[1]), storage)
        )
        assert said.startswith(words), said


@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ("{host: localhost}", "serving.listen.host: write an address of this machine"),
        ("{host: '::1%x] bind 0.0.0.0:9999 #'}", "serving.listen.host: write the address without a scope"),
        ("{certificate: tls.crt}", "certificate and key are said together"),
        ("{certificate: a, key: b, tls: elsewhere}", "where TLS ends elsewhere, no certificate"),
        ("{host: 10.0.0.1}", "plain HTTP on 10.0.0.1 shows keys and rows"),
        ("{port: 8001, grpc_port: 8001}", "HTTP and gRPC need a port each"),
        ("{port: 99999}", "serving.listen.port"),
    ],
)
def test_a_mistake_in_listen_is_told_with_its_line(listen: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "project.yaml"
    file.write_text(listening(listen))
    line = file.read_text().splitlines().index(f"  listen: {listen}") + 1
    with pytest.raises(ConfigError) as error:
        config.load(file, {})
    assert words in str(error.value)
    assert str(error.value).startswith(f"{file}:{line}: ")


def test_the_files_of_tls_lie_beside_the_project_and_variables_are_filled_in(tmp_path: Path) -> None:
    listen = '{host: "${HOST}", port: "${PORT}", certificate: tls.crt, key: keys/tls.key}'
    file = tmp_path / "project.yaml"
    file.write_text(listening(listen))
    found = config.load(file, {"HOST": "::", "PORT": "8443"}).serving.listen
    assert (found.host, found.port) == ("::", 8443)
    assert (found.certificate, found.key) == (str(tmp_path / "tls.crt"), str(tmp_path / "keys" / "tls.key"))
