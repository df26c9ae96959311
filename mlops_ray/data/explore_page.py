"""The page of a first look (explore.py): what is in its JSON document and nothing else."""

from mlops_ray import pictures
from mlops_ray.data import report
from mlops_ray.data.report import Document
from mlops_ray.pages import Block, Section, Table, cut, number, page, share, value

#: Columns in pictures beside the target.
MOST_PICTURES = 6
#: A column that tells less than this of the target's variance is not drawn.
FAINT = 0.001


def explore_page(document: Document) -> str:
    """The page of a first look, from its JSON document alone."""
    profile, target = document["profile"], document["target"]
    tiles = ("Repeated rows", f"{document['duplicates']:,}", "in every column")
    sections = [
        report.overview_section(profile, tiles),
        _preview_section(document["preview"]),
        report.columns_section(profile),
    ]
    sections += [report.time_section(profile), report.missing_section(profile), _together_section(document)]
    if target is not None:
        sections += [_target_section(target), _learning_section(target)]
    subtitle = f"First look at {profile['rows']:,} rows, seed {document['seed']}"
    return page(document["name"], subtitle, document["findings"], sections)


def _preview_section(preview: Document) -> Section:
    rows = [[value(cell) for cell in row] for row in preview["rows"]]
    table = Table([cut(name) for name in preview["columns"]], rows)
    return Section("Some rows", [Block(table=table, wide=True)])


def _together_section(document: Document) -> Section:
    names = (
        ("correlation", "Rank correlation", "Spearman’s, from -1 (red) to 1 (blue), of numbers."),
        ("association", "Association", "Cramér’s V, from 0 to 1, of categories."),
    )
    blocks = [
        Block(title, note=note, picture=pictures.heat_map(found["columns"], found["values"], title))
        for key, title, note in names
        if (found := document[key])["columns"]
    ]
    return Section("What goes with what", blocks, f"Of a sample of {document['sample']:,} rows.")


def _target_section(target: Document) -> Section:
    sought = target["sought"]
    classes = report.value_bars(target["classes"], target["rows"]) if target["classes"] else []
    blocks = [Block("Classes", bars=classes, wide=True)] if classes else []
    axis = "mean of the target" if sought is None else f"share of class {cut(value(sought), 22)}"
    drawn = [relation for relation in target["relations"] if relation["strength"] >= FAINT][:MOST_PICTURES]
    for relation in drawn:
        parts, name = relation["parts"], cut(relation["column"])
        labels, means, counts = ([part[key] for part in parts] for key in ("label", "mean", "rows"))
        mean = sum(part["mean"] * part["rows"] for part in parts) / sum(counts)
        picture = pictures.dots(labels, means, counts, mean, f"The target by {name}", axis)
        note = f"Explains {share(relation['strength'])} of the variance. At the right: rows."
        blocks += [Block(name, note=note, picture=picture)]
    note = "The columns that tell most of it; the dashed line is the mean of all rows."
    return Section("The target", blocks, note if drawn else "")


def _learning_section(target: Document) -> Section:
    learning, suspects = target["learning"], target["suspects"]
    names = ", ".join(cut(suspect["column"]) for suspect in suspects[:5]) + (", …" if suspects[5:] else "")
    left_out = f" Left out: {names}." if suspects else ""
    note = "A quick model of the columns as they are, with nothing tuned and no history." + left_out
    blocks = [Block(note=learning["said"], wide=True)]
    if learning["points"]:
        sizes, errors = ([point[key] for point in learning["points"]] for key in ("rows", "error"))
        title, metric, naive = "Error by rows learned from", learning["metric"], learning["naive"]
        rows = [[f"{size:,}", number(error)] for size, error in zip(sizes, errors, strict=True)]
        table = Table(["Rows", metric], [*rows, ["naive value", number(naive)]], frozenset({0, 1}))
        blocks = [Block(title, picture=pictures.curve(sizes, errors, naive, title, metric))]
        blocks += [Block(note=learning["said"], table=table)]
    return Section("Is it enough to learn from?", blocks, note)
