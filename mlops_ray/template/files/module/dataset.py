"""Makes `data/raw/sales.csv`: sales of six shops over two years, the same every time.

python -m project_module.dataset data/raw/sales.csv
"""

import csv
import random
import sys
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

SHOPS = {"north": 40, "south": 90, "east": 60, "west": 120, "station": 200, "airport": 150}
FIRST, DAYS = date(2024, 1, 1), 730
#: How much is sold from Monday to Sunday.
WEEK = (0.9, 0.85, 0.9, 1.0, 1.3, 1.6, 0.5)


def rows() -> Iterator[tuple[str, str, float, float]]:
    """Shop, day, what was sold, and at which price."""
    chance = random.Random(7)
    for number in range(DAYS):
        day = FIRST + timedelta(days=number)
        for shop, usual in SHOPS.items():
            price = round(chance.choice((4.5, 5.0, 5.5)), 2)
            payday = 1.2 if day.day in (15, 30) else 1.0
            wanted = usual * WEEK[day.weekday()] * payday * (5.0 / price) * (1 + number / 3000)
            yield day.isoformat(), shop, round(max(0.0, chance.gauss(wanted, wanted * 0.08)), 1), price


def main(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("day", "shop", "sold", "price"))
        writer.writerows(rows())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
