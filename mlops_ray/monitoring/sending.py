"""How messages leave: by POST, by SMTP, as lines of a log. No error shows an address, which may be secret."""

import base64
import contextlib
import html
import logging
import smtplib
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from datetime import datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

import orjson

import mlops_ray
from mlops_ray.config.mail import Mail, mail
from mlops_ray.errors import one_line
from mlops_ray.monitoring import alerts

#: How long a call may take.
CALL_S = 30.0
#: What a web server answers whom the message is too large, or says something wrong.
REFUSED = (400, 413, 422)
Kind = Literal["webhook", "email", "log"]

logger = logging.getLogger(__name__)
#: Its lines are JSON and nothing else. They quote what was found, which the log of errors must not keep: that
#: hears of all loggers below mlops_ray.
lines = logging.getLogger("mlops_ray_alerts")


class Route(NamedTuple):
    """A way to people: its kind, and an address, which is empty for the log."""

    kind: Kind
    address: str = ""

    def shown(self) -> str:
        """Where it leads, without what may be a secret.

        >>> Route("webhook", "https://user:secret@hooks.example.org/T0/secret").shown()
        'https://hooks.example.org/…'
        >>> Route("email", "smtp://ann:secret@mail.example.org/ops@example.org").shown()
        'ops@example.org by mail.example.org:587'
        """
        if self.kind == "webhook":
            parts = urlsplit(self.address)
            return f"{parts.scheme}://{parts.hostname}/…"
        if self.kind == "email":
            to = mail(self.address)
            return f"{', '.join(to.to)} by {to.host}:{to.port}"
        return "the monitor's log"


def routes(declared: Iterable[Mapping[str, Any]]) -> list[Route]:
    """The routes of a project's alerts over which something is sent: Prometheus asks by itself."""
    return [
        Route(kind, "" if kind == "log" else alert[kind])
        for alert in declared
        for kind in ("webhook", "email", "log")
        if alert.get(kind)
    ]


def send(route: Route, message: Mapping[str, Any]) -> None:
    """Returns when the other side has taken the message (`alerts.message`); raises whatever hinders it."""
    if route.kind == "webhook":
        post(route.address, message)
    elif route.kind == "email":
        _write(mail(route.address), message)
    else:
        for alert in message["alerts"]:
            lines.warning(orjson.dumps({"message": message["id"], "at": message["at"], **alert}).decode())


def reason(error: Exception) -> str:
    """Why something was not sent, without what was asked where.

    >>> reason(urllib.error.URLError(ConnectionRefusedError(111, "Connection refused")))
    'Connection refused'
    >>> reason(ValueError("http://user:secret@host")), reason(smtplib.SMTPAuthenticationError(535, b"secret"))
    ('ValueError', 'status 535')
    """
    if isinstance(error, urllib.error.HTTPError):
        return f"status {error.code}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        return reason(error.reason)
    if isinstance(error, smtplib.SMTPResponseException):
        return f"status {error.smtp_code}"
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return f"status {min(status for status, _ in error.recipients.values())}"
    if isinstance(error, smtplib.SMTPNotSupportedError):
        hint = "; with ?tls=no it would go in the clear" if "STARTTLS" in str(error) else ""
        return one_line(error) + hint
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__


def is_of_content(error: BaseException) -> bool:
    """Whether it is what the message says that the other side refuses, as it will each time.

    >>> [is_of_content(smtplib.SMTPDataError(status, b"")) for status in (554, 451)]
    [True, False]
    """
    if isinstance(error, urllib.error.HTTPError):
        return error.code in REFUSED
    return isinstance(error, smtplib.SMTPDataError) and error.smtp_code >= 500


# ---------------------------------------------------------------- HTTP


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """What is sent elsewhere becomes a GET there, which says nothing: it counts as an error."""

    def redirect_request(self, *_: Any) -> None:
        return None


def post(address: str, document: Mapping[str, Any]) -> None:
    """Sends JSON; returns when it was answered with 2xx. A user and password go into the head."""
    place, headers = _without_user(address)
    # Some receivers refuse what calls itself Python.
    headers |= {"content-type": "application/json", "user-agent": f"mlops_ray/{mlops_ray.__version__}"}
    request = urllib.request.Request(place, orjson.dumps(document), headers)  # noqa: S310 - a user's own
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=CALL_S):
        pass


def _without_user(address: str) -> tuple[str, dict[str, str]]:
    parts = urlsplit(address)
    user, is_there, host = parts.netloc.rpartition("@")
    if not is_there:
        return address, {}
    secret = base64.b64encode(unquote(user).encode()).decode()
    return parts._replace(netloc=host).geturl(), {"authorization": f"Basic {secret}"}


# ---------------------------------------------------------------- e-mail


def _write(to: Mail, message: Mapping[str, Any]) -> None:
    context = None if to.tls == "no" else ssl.create_default_context()
    with contextlib.closing(_connected(to, context)) as server:
        if context is not None and to.tls == "starttls":
            server.starttls(context=context)
        if to.user:
            server.login(to.user, to.password)
        refused = server.send_message(letter(to, message))
        if refused:
            logger.warning("an alert was refused by %d of %d who get it", len(refused), len(to.to))
        # It has been taken, whatever the server says to that.
        with contextlib.suppress(OSError):
            server.quit()


def _connected(to: Mail, context: ssl.SSLContext | None) -> smtplib.SMTP:
    if to.tls == "from the start":
        return smtplib.SMTP_SSL(to.host, to.port, timeout=CALL_S, context=context)
    return smtplib.SMTP(to.host, to.port, timeout=CALL_S)


def letter(to: Mail, message: Mapping[str, Any]) -> EmailMessage:
    """The message as text and as HTML; its id stays, so that who gets it twice may see that."""
    # The policy refuses a header that holds a line break.
    made = EmailMessage(policy=SMTP)
    sender = to.sender or (to.user if "@" in to.user else f"mlops-ray@{socket.gethostname()}")
    made["Subject"], made["From"], made["To"] = alerts.subject(message), sender, ", ".join(to.to)
    made["Date"] = format_datetime(datetime.fromisoformat(message["at"]))
    made["Message-ID"] = f"<{message['id']}@mlops-ray>"
    made["Auto-Submitted"] = "auto-generated"
    made.set_content(message["text"] + "\n")
    made.add_alternative(page(message), subtype="html")
    return made


def page(message: Mapping[str, Any]) -> str:
    """The message as HTML: a heading, a list and a link for each alert."""
    return "".join(["<!doctype html><html><body>", *map(_part, message["alerts"]), "</body></html>"])


def _part(alert: Mapping[str, Any]) -> str:
    found = "".join(f"<li>{html.escape(each)}</li>" for each in alerts.lines(alert))
    heading, link = html.escape(alerts.heading(alert)), html.escape(alert["link"])
    return f'<h3>{heading}</h3><ul>{found}</ul><p><a href="{link}">{link}</a></p>'
