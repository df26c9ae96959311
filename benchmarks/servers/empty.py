"""Ray Serve's own ceiling: a handler that answers every request at once, set up as ours is."""

from typing import Any

from ray import serve

NAME = "empty"
BODY = b'{"outputs":[]}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]


class Empty:
    """Raw ASGI that does not even read what it is asked."""

    def __serve_build_asgi_app__(self) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
                await send({"type": "http.response.body", "body": BODY})
            while scope["type"] == "lifespan":
                what = (await receive())["type"].removeprefix("lifespan.")
                await send({"type": f"lifespan.{what}.complete"})
                if what == "shutdown":
                    return

        return app


def application(_: object) -> serve.Application:
    """The application, with the settings of serving/replica.py; it needs no core of its own."""
    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": 0},
        "max_ongoing_requests": 10_000,
        "health_check_period_s": 1.0,
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
    }
    return serve.deployment(name=NAME, **options)(serve.ingress()(Empty)).bind()
