"""What README.md and the pages of docs/ show is what comes out."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from mlops_ray import __version__, cli, config, storage
from mlops_ray.cluster import loop, meter
from mlops_ray.features import definitions, manifest, shelves
from mlops_ray.monitoring import alerting, alerts, state
from mlops_ray.registry import package
from mlops_ray.serving import record, score

from .conftest import ROOT

#: The pages that people read.
PAGES = ["README.md", "CHANGELOG.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def blocks(page: str, language: str) -> list[str]:
    """The blocks of code of a page in a language, in their order."""
    text = (ROOT / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What links lead to within a page: its headings, as GitHub writes them in an address."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(page: str) -> None:
    here = ROOT / page
    for link in re.findall(r"\]\(([^)\s]+)\)", here.read_text()):
        if link.startswith("https://"):
            continue
        file, _, heading = link.partition("#")
        target = (here.parent / file).resolve() if file else here
        assert target.exists(), link
        assert not heading or heading in anchors(target), link


def test_every_page_of_docs_is_one_that_the_readme_leads_to() -> None:
    text = (ROOT / "README.md").read_text()
    assert [path.name for path in sorted((ROOT / "docs").iterdir()) if f"docs/{path.name}" not in text] == []


def test_the_top_level_holds_nothing_but_what_a_newcomer_expects_there() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert {line.partition("/")[0] for line in tracked.splitlines()} == {
        ".ci", ".gitignore", "CHANGELOG.md", "LICENSE", "Makefile", "README.md", "benchmarks", "cluster.yaml",
        "configs", "docs", "mlops_ray", "pyproject.toml", "requirements.lock", "tests",
    }  # fmt: skip


def test_the_example_of_alerts_is_a_part_of_a_project_file(tmp_path: Path) -> None:
    (example,) = [block for block in blocks("docs/monitoring.md", "yaml") if "alerts:" in block]
    file = tmp_path / "project.yaml"
    text = (ROOT / "configs" / "factory_load.yaml").read_text()
    file.write_text(text.partition("monitoring:\n")[0] + example)
    environ = {"ALERT_URL": "https://hooks.example.org", "SMTP_URL": "smtp://localhost/ops@example.org"}
    assert len(config.load(file, environ).monitoring.alerts) == 4


def test_a_webhook_s_fields_and_words_stand_in_the_page_as_they_are_sent() -> None:
    text = (ROOT / "docs/monitoring.md").read_text()
    (about,) = re.findall(r"^- A webhook gets `(.*?)`: (.*?)\n- ", text, re.MULTILINE | re.DOTALL)
    shown, said = (" ".join(each.split()) for each in about)
    sent = alerts.message([alerts.trial("m", 0.0)], "https://ml.example.org", 0.0)

    def fields(of: Any) -> str:
        if isinstance(of, list):
            return f"[{fields(of[0])}]"
        inner = {name: fields(value) if isinstance(value, list) else "" for name, value in of.items()}
        return "{" + ", ".join(name + (f": {more}" if more else "") for name, more in inner.items()) + "}"

    assert shown == fields(sent)
    words = ["firing", "resolved", "event", *get_args(alerts.Why), *get_args(alerts.What)]
    assert re.findall(r"`(?!status|why|what)(\w+)`", said) == words


def test_the_example_of_costs_is_a_part_of_a_project_file(tmp_path: Path) -> None:
    (costs,) = [block for block in blocks("docs/costs.md", "yaml") if block.startswith("cost:")]
    file = tmp_path / "project.yaml"
    file.write_text((ROOT / "configs" / "factory_load.yaml").read_text() + costs)
    found = config.load(file, {}).cost
    assert (found.load, found.prices) == (40, str(tmp_path / "prices.yaml"))


def test_the_change_log_tells_of_this_version_and_of_the_formats_on_disk() -> None:
    """Whoever raises one says so there; where an older version would misread it, that of the storage too."""
    text = (ROOT / "CHANGELOG.md").read_text()
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__
    assert re.search(rf"^## {re.escape(__version__)}\b", text, re.MULTILINE)
    # The newest stands first.
    listed = dict(reversed(re.findall(r"^\| ([a-z ]+) \| (\w+) \|$", text, re.MULTILINE)))
    del listed["what"]
    assert listed == {
        "storage": str(storage.FORMAT),
        "package": str(package.FORMAT_VERSION),
        "training set": str(manifest.FORMAT),
        "history": str(definitions.FORMAT),
        "online record": shelves.FORMAT.decode(),
        "release": str(record.FORMAT_VERSION),
        "monitor": str(state.FORMAT_VERSION),
        "alerts": str(alerting.FORMAT_VERSION),
        "retraining": str(loop.FORMAT_VERSION),
        "costs": str(meter.FORMAT_VERSION),
        "scoring": str(score.FORMAT_VERSION),
    }


# ---------------------------------------------------------------- commands


def commands(group: Any, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """The commands of the command line, by their names."""
    found = {}
    for name, command in group.commands.items():
        below = hasattr(command, "commands")
        found |= commands(command, (*path, name)) if below else {" ".join((*path, name)): command}
    return found


COMMANDS = commands(typer.main.get_command(cli.app))


def written() -> Iterator[tuple[list[str], list[str]]]:
    """What the table of commands writes, span by span: commands, and the words behind the last."""
    text = (ROOT / "README.md").read_text().partition("## Commands\n")[2].partition("\n## ")[0]
    for cell in re.findall(r"^\| (`.*?) \| [^|]* \|$", text.replace(r"\|", "¦"), re.MULTILINE):
        group = ""
        for span in re.findall(r"`(?:mlops-ray )?([^`]+)`", cell):
            names, words = [], list[str]()
            for part in span.split(" · "):
                words = part.split()
                # A group is written once, before the first of its commands.
                known = [" ".join(words[:2]), f"{group} {words[0]}", words[0]]
                names.append(next((name for name in known if name in COMMANDS), span))
                group = names[-1].rpartition(" ")[0]
                words = words[2:] if names[-1] == known[0] and len(words) > 1 else words[1:]
            yield names, words


SPANS = list(written())


def test_every_command_stands_in_the_table_and_no_other() -> None:
    assert sorted(name for names, _ in SPANS for name in names) == sorted(COMMANDS)


@pytest.mark.parametrize(("names", "words"), SPANS, ids=lambda value: " ".join(value))
def test_what_the_table_says_of_a_command_is_what_it_takes(names: list[str], words: list[str]) -> None:
    for name in names:
        options = {
            option: parameter
            for parameter in COMMANDS[name].params
            for option in (*parameter.opts, *parameter.secondary_opts)
            if parameter.param_type_name == "option"
        }
        given, ahead = [], [word.strip("[]") for word in words]
        while ahead:
            word = ahead.pop(0)
            if word.startswith("--") and word != "--":
                assert word in options, f"{name} has no {word}"
                if not options[word].is_flag:
                    ahead.pop(0)
            else:
                given.append(word)
        asked = [
            p.metavar or p.name.upper() for p in COMMANDS[name].params if p.param_type_name == "argument"
        ]
        if words:
            assert " ".join(given) == " ".join(asked)
