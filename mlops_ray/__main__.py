"""The command's first step, also as `python -m mlops_ray`."""

import signal


def main() -> None:
    """Runs the command. While its modules are imported, nothing needs cleaning up: Ctrl-C just ends it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from mlops_ray import cli

    cli.main()


if __name__ == "__main__":
    main()
