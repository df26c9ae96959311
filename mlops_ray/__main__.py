"""The command's first step, also as `python -m mlops_ray`."""

import signal


def main() -> None:
    """Runs the command; while its modules are imported there is nothing to clean up, and Ctrl-C just ends it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from mlops_ray import cli

    signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main()


if __name__ == "__main__":
    main()
