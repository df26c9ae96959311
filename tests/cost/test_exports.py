"""Prices out of other people's files: what they say, no more, and never half of it."""

import copy
import datetime as dt
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from mlops_ray.cost import exports
from mlops_ray.cost.exports import Asked, Shape, imported
from mlops_ray.errors import DataError

DAY = dt.date(2026, 11, 1)
CSV = "Machine,vcpu,memory_gib,EUR/h,spot\nsmall,2,8,0.10,\nsmall,2,8,0.03,yes\n"
OURS = {"type": "Machine", "per_hour": "EUR/h", "vcpu": "vcpu"}

PLAIN = {
    "instanceType": "m5.large",
    "vcpu": "2",
    "memory": "8 GiB",
    "regionCode": "eu-central-1",
    "operatingSystem": "Linux",
    "tenancy": "Shared",
    "preInstalledSw": "NA",
    "capacitystatus": "Used",
    "marketoption": "OnDemand",
}


def _terms(price: str, unit: str = "Hrs", currency: str = "USD") -> dict[str, Any]:
    return {"T": {"priceDimensions": {"D": {"unit": unit, "pricePerUnit": {currency: price}}}}}


AWS = {
    "offerCode": "AmazonEC2",
    "publicationDate": "2026-10-30T20:00:00Z",
    "products": {
        "A": {"attributes": PLAIN},
        "B": {"attributes": PLAIN | {"instanceType": "g5.xlarge", "gpu": "1", "memory": "1,016.5 GiB"}},
        "C": {"attributes": PLAIN | {"operatingSystem": "Windows"}},
        "D": {"attributes": PLAIN | {"tenancy": "Dedicated"}},
        "E": {"attributes": PLAIN | {"capacitystatus": "UnusedCapacityReservation"}},
        "F": {"attributes": PLAIN | {"regionCode": "us-east-1"}},
        "G": {"attributes": {"servicecode": "AmazonEC2", "group": "NGW"}},
    },
    "terms": {
        "OnDemand": {
            "A": _terms("0.1150000000"),
            "B": _terms("1.2580000000"),
            "C": _terms("0.2"),
            "D": _terms("0.3"),
            "E": _terms("0.115"),
            "F": _terms("0.096"),
        }
    },
}
D4 = {
    "currencyCode": "EUR",
    "retailPrice": 0.2,
    "armRegionName": "westeurope",
    "effectiveStartDate": "2025-04-01T00:00:00Z",
    "productName": "Virtual Machines Dsv5 Series",
    "skuName": "Standard_D4s_v5",
    "serviceName": "Virtual Machines",
    "unitOfMeasure": "1 Hour",
    "type": "Consumption",
    "isPrimaryMeterRegion": True,
    "armSkuName": "Standard_D4s_v5",
}
AZURE = {
    "Items": [
        D4,
        D4 | {"skuName": "D4s v5 Spot", "retailPrice": 0.05},
        D4 | {"skuName": "D4s v5 Low Priority", "retailPrice": 0.04},
        D4 | {"productName": "Virtual Machines Dsv5 Series Windows", "retailPrice": 0.4},
        D4 | {"type": "Reservation", "unitOfMeasure": "1 Hour", "retailPrice": 900},
        D4 | {"armSkuName": "Standard_E8-2s_v5", "skuName": "E8-2s v5"},
        D4 | {"armSkuName": "Standard_NC4as_T4_v3", "skuName": "NC4as T4 v3", "retailPrice": 0.6},
    ]
}


def _sku(said: str, price: float, usage: str = "OnDemand", region: str = "europe-west3") -> dict[str, Any]:
    unit = {"currencyCode": "USD", "units": str(int(price)), "nanos": round(price % 1 * 1e9)}
    free = {"startUsageAmount": 0, "unitPrice": {"currencyCode": "USD", "units": "0", "nanos": 0}}
    rates = {"tieredRates": [free, {"startUsageAmount": 1, "unitPrice": unit}]}
    return {
        "skuId": said,
        "description": said,
        "category": {"resourceFamily": "Compute", "usageType": usage},
        "serviceRegions": [region],
        "pricingInfo": [{"pricingExpression": rates}],
    }


GCP = {
    "skus": [
        _sku("N2 Instance Core running in Frankfurt", 0.04),
        _sku("N2 Instance Ram running in Frankfurt", 0.005),
        _sku("Spot Preemptible N2 Instance Core running in Frankfurt", 0.01, "Preemptible"),
        _sku("Spot Preemptible N2 Instance Ram running in Frankfurt", 0.001, "Preemptible"),
        _sku("N2 Custom Instance Core running in Frankfurt", 9.0),
        _sku("N2 Instance Core running in Frankfurt", 7.0, "Commit1Yr"),
        _sku("Commitment v1: N2 Cpu in Frankfurt for 1 Year", 8.0, "Commit1Yr"),
        _sku("N1 Predefined Instance Core running in Frankfurt", 0.03),
        _sku("N1 Predefined Instance Ram running in Frankfurt", 0.004),
        _sku("Nvidia Tesla T4 GPU running in Frankfurt", 1.25),
    ]
}
SHAPES = {
    "n2-standard-4": Shape(4, 16),
    "n1-standard-4": Shape(4, 15, "NVIDIA Tesla T4", 1),
    "c9-standard-4": Shape(4, 16),
}
EXPORTS: dict[str, tuple[Any, Asked]] = {
    "aws": (AWS, Asked(DAY, "ec2.json")),
    "azure": (AZURE, Asked(DAY, "azure.json")),
    "gcp": (GCP, Asked(DAY, "skus.json", shapes=SHAPES)),
}


def figures(found: exports.Imported) -> dict[tuple[str, bool], float]:
    return {(price.type, price.spot): round(price.per_hour, 9) for price in found.prices}


def test_a_table_of_ones_own_is_read_by_what_its_columns_are_called() -> None:
    found = imported("csv", CSV, Asked(DAY, "mine.csv", currency="EUR", columns=OURS))
    assert figures(found) == {("small", False): 0.1, ("small", True): 0.03}
    assert {(price.source, price.date) for price in found.prices} == {("mine.csv", DAY)}


@pytest.mark.parametrize(
    "text", ["type,vcpu,EUR/h,per_hour\nsmall,2,0.1,73\n", "type,vcpu,per_hour,EUR/h\nsmall,2,73,0.1\n"]
)
def test_a_column_that_is_named_is_taken_and_not_the_one_that_is_called_so_already(text: str) -> None:
    asked = Asked(DAY, "mine.csv", currency="EUR", columns={"per_hour": "EUR/h"})
    assert figures(imported("csv", text, asked)) == {("small", False): 0.1}
    # Nor does the other one take its place where it is empty.
    with pytest.raises(DataError, match=r"mine\.csv, row 2: .*per_hour"):
        imported("csv", text.replace("0.1", ""), asked)


@pytest.mark.parametrize(
    ("text", "columns", "says"),
    [
        (CSV.replace("spot", "vcpu"), OURS, "mine.csv: two columns are called 'vcpu'"),
        (CSV.replace("spot", "EUR/h"), OURS, "mine.csv: two columns are called 'EUR/h'"),
        (CSV.replace("0.03", "0,03,"), OURS, "mine.csv, row 3: has another number of columns"),
        (CSV.replace("0.03", "dear"), OURS, "mine.csv, row 3: per_hour: "),
        (CSV + CSV.splitlines()[1] + "1\n", OURS, "mine.csv, row 4: small (spot) has two prices"),
        (CSV, {"type": "Machin"}, "mine.csv: no column 'Machin'; did you mean 'Machine'?"),
        (CSV, OURS | {"prize": "EUR/h"}, "no column 'prize' is wanted"),
        (CSV.partition("small")[0], OURS, "mine.csv: it has no price of a plain Linux machine"),
    ],
)
def test_a_table_with_a_mistake_is_refused_with_its_row(
    text: str, columns: dict[str, str], says: str
) -> None:
    with pytest.raises(DataError) as error:
        imported("csv", text, Asked(DAY, "mine.csv", currency="EUR", columns=columns))
    assert says in str(error.value)


def test_of_an_offer_file_of_aws_plain_linux_machines_are_taken_with_its_own_date() -> None:
    found = imported("aws", json.dumps(AWS), Asked(DAY, "ec2.json", region="eu-central-1"))
    assert figures(found) == {("m5.large", False): 0.115, ("g5.xlarge", False): 1.258}
    graphic = found.prices[1]
    assert (graphic.gpus, graphic.memory_gib, graphic.date) == (1, 1016.5, dt.date(2026, 10, 30))
    assert len(imported("aws", json.dumps(AWS), Asked(DAY, "ec2.json")).prices) == 3


def test_where_aws_tells_two_currencies_one_is_chosen_and_none_guessed() -> None:
    both = copy.deepcopy(AWS)
    both["terms"]["OnDemand"]["A"]["T"]["priceDimensions"]["D"]["pricePerUnit"]["CNY"] = "0.8"  # type: ignore[index]
    with pytest.raises(DataError, match="sku A is told in CNY and USD: choose a currency"):
        imported("aws", json.dumps(both), Asked(DAY, "ec2.json"))
    found = imported("aws", json.dumps(both), Asked(DAY, "ec2.json", currency="CNY"))
    assert figures(found) == {("m5.large", False): 0.8}


def test_of_azure_spot_is_told_apart_and_windows_and_reservations_are_left_out() -> None:
    found = imported("azure", json.dumps(AZURE), Asked(DAY, "azure.json"))
    assert figures(found) == {
        ("Standard_D4s_v5", False): 0.2,
        ("Standard_D4s_v5", True): 0.05,
        ("Standard_E8-2s_v5", False): 0.2,
    }
    assert [price.vcpu for price in found.prices] == [4, 4, 2]
    assert "Standard_NC4as_T4_v3" in found.notes[0]
    shapes = {"Standard_NC4as_T4_v3": Shape(4, 28, "T4", 1)}
    told = imported("azure", json.dumps(AZURE), Asked(DAY, "azure.json", shapes=shapes))
    assert (told.prices[-1].gpu, told.prices[-1].gpus, told.notes) == ("T4", 1, [])


def test_where_azure_tells_two_currencies_one_is_chosen_and_none_guessed() -> None:
    text = json.dumps({"Items": [D4, D4 | {"currencyCode": "USD", "retailPrice": 0.23}]})
    with pytest.raises(DataError, match=r"azure\.json: is told in EUR and USD: choose a currency"):
        imported("azure", text, Asked(DAY, "azure.json"))
    for currency, per_hour in (("EUR", 0.2), ("USD", 0.23)):
        found = imported("azure", text, Asked(DAY, "azure.json", currency=currency))
        assert [(price.currency, price.per_hour) for price in found.prices] == [(currency, per_hour)]


def test_of_azures_prices_of_one_machine_the_newest_that_had_begun_counts_wherever_it_stands() -> None:
    now = D4 | {"effectiveStartDate": "2026-10-01T00:00:00Z"}
    ended = D4 | {"effectiveEndDate": "2026-09-30T23:59:59Z", "retailPrice": 0.3}
    undated = D4 | {"effectiveStartDate": None, "retailPrice": 0.1}
    to_come = D4 | {"effectiveStartDate": "2026-12-01T00:00:00Z", "retailPrice": 0.4}
    for items in itertools.permutations([now, D4 | {"retailPrice": 0.1}, ended, undated, to_come]):
        found = imported("azure", json.dumps({"Items": items}), Asked(DAY, "azure.json"))
        assert [(price.per_hour, price.date) for price in found.prices] == [(0.2, DAY)]
        assert found.notes == []
    others = [to_come | {"armSkuName": "Standard_D8s_v5"}, ended | {"armSkuName": "Standard_D2s_v5"}]
    found = imported("azure", json.dumps({"Items": [*others, now]}), Asked(DAY, "azure.json"))
    assert figures(found) == {("Standard_D4s_v5", False): 0.2}
    assert found.notes == [
        "left out, since they have no price of 2026-11-01 (--date): Standard_D2s_v5, Standard_D8s_v5"
    ]


@pytest.mark.parametrize(
    ("name", "vcpu"),
    [
        ("Basic_A3", 4),
        ("Standard_A5", 2),
        ("Standard_A7", 8),
        ("Standard_A4_v2", 4),
        ("Standard_A2m_v2", 2),
        ("Standard_D3", 4),
        ("Standard_D2_v2", 2),
        ("Standard_DS4_v2", 8),
        ("Standard_D11_v2", 2),
        ("Standard_D13_v2", 8),
        ("Standard_D13_v2_Promo", 8),
        ("Standard_DS13-2_v2", 2),
        ("Standard_DS15i_v2", 20),
        ("Standard_D4_v3", 4),
        ("Standard_G5", 32),
        ("Standard_GS1", 2),
        ("Standard_M416s_v2", 416),
    ],
)
def test_azures_first_series_number_their_sizes_and_later_ones_tell_their_vcpu(name: str, vcpu: int) -> None:
    found = imported("azure", json.dumps({"Items": [D4 | {"armSkuName": name}]}), Asked(DAY, "azure.json"))
    assert [(price.type, price.vcpu) for price in found.prices] == [(name, vcpu)]


def test_a_size_of_azures_first_series_that_is_in_no_table_is_left_out_until_it_is_told() -> None:
    text = json.dumps({"Items": [D4, D4 | {"armSkuName": "Standard_D16_v2"}]})
    found = imported("azure", text, Asked(DAY, "azure.json"))
    assert [price.type for price in found.prices] == ["Standard_D4s_v5"]
    assert found.notes == ["left out, since their names tell no size (give it in --shapes): Standard_D16_v2"]
    shapes = {"Standard_D16_v2": Shape(32, 64)}
    assert imported("azure", text, Asked(DAY, "azure.json", shapes=shapes)).prices[1].vcpu == 32


def test_where_an_export_has_no_price_that_is_wanted_it_is_said_what_was_left_out_and_why() -> None:
    core, ram = (_sku(f"Compute optimized {part} running in Frankfurt", 0.04) for part in ("Core", "Ram"))
    asked = Asked(DAY, "skus.json", shapes={"c2-standard-4": Shape(4, 16)})
    with pytest.raises(DataError, match=r"no price of .*; left out, .* called otherwise .*: c2-standard-4"):
        imported("gcp", json.dumps({"skus": [core, ram]}), asked)
    graphic = json.dumps({"Items": AZURE["Items"][-1:]})
    with pytest.raises(DataError, match=r"no price of .*; left out, .* \(give .*\): Standard_NC4as_T4_v3"):
        imported("azure", graphic, Asked(DAY, "azure.json"))
    with pytest.raises(DataError, match=r"no price of the region 'mars' of a plain Linux machine$"):
        imported("aws", json.dumps(AWS), Asked(DAY, "ec2.json", region="mars"))


def test_googles_parts_add_up_to_the_machines_that_are_asked_for() -> None:
    found = imported("gcp", json.dumps(GCP), Asked(DAY, "skus.json", shapes=SHAPES))
    # 4 cores and 16 GiB: 4 · 0.04 + 16 · 0.005; with a GPU 4 · 0.03 + 15 · 0.004 + 1.25 an hour.
    assert figures(found) == {
        ("n2-standard-4", False): 0.24,
        ("n2-standard-4", True): 0.056,
        ("n1-standard-4", False): 1.43,
    }
    unknown = "left out, since they are not sold there, or their parts are called otherwise (write them into"
    assert found.notes == [f"{unknown} the file of prices by hand): c9-standard-4"]
    with pytest.raises(DataError, match="say of what machines are made"):
        imported("gcp", json.dumps(GCP), Asked(DAY, "skus.json"))


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (Shape(4), "skus.json: n1-standard-4 has no memory_gib (shapes), which is paid apart"),
        (Shape(4, float("nan")), "has no memory_gib"),
        (Shape(4, 15, "", 1), "skus.json: n1-standard-4 has gpus, but no gpu (shapes) to say which"),
        (Shape(4, 15, "Nvidia Tesla T4", 0), "Nvidia Tesla T4 is there how often?"),
    ],
)
def test_a_machine_of_google_is_priced_with_its_memory_and_its_gpus_or_not_at_all(
    shape: Shape, says: str
) -> None:
    asked = Asked(DAY, "skus.json", shapes={"n1-standard-4": shape})
    with pytest.raises(DataError, match=re.escape(says)):
        imported("gcp", json.dumps(GCP), asked)


def _damaged(tree: Any, whole: Any) -> Iterator[Any]:
    """The whole with one part after another left out or made into something else."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        kept = tree[key]
        for other in (None, [], "x", "a\ud800", {"x": [1]}, -1, float("inf"), 10**400):
            tree[key] = other
            yield whole
        if isinstance(tree, dict):
            del tree[key]
            yield whole
        tree[key] = kept
        yield from _damaged(kept, whole)


@pytest.mark.parametrize("format", EXPORTS)
def test_a_damaged_export_costs_a_sentence_with_the_file_and_never_a_traceback(format: str) -> None:
    tree, asked = EXPORTS[format]
    tree = copy.deepcopy(tree)
    said, taken = [], []
    for damaged in _damaged(tree, tree):
        try:
            taken += imported(format, json.dumps(damaged), asked).prices
        except DataError as error:
            said.append(str(error))
    assert all(price.per_hour > 0 for price in taken)
    assert len(said) > 10
    assert [text for text in said if asked.source not in text] == []


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"Items": 3}', "[" * 100_000])
@pytest.mark.parametrize("format", EXPORTS)
def test_what_is_no_export_is_said_to_be_none(format: str, text: str) -> None:
    with pytest.raises(DataError, match=r"json: (not JSON|is no such export)"):
        imported(format, text, EXPORTS[format][1])


def test_an_unknown_format_is_told_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"no format 'azur'; did you mean 'azure'\?"):
        imported("azur", "", Asked(DAY, "a.json"))


def test_sizes_of_two_columns_of_one_name_are_refused() -> None:
    with pytest.raises(DataError, match=r"s\.csv: two columns are called 'vcpu'"):
        exports.shapes("type,vcpu,vcpu\na,2,4\n", "s.csv")


def test_sizes_that_are_no_numbers_are_said_with_their_row() -> None:
    with pytest.raises(DataError, match=r"s\.csv, row 2: could not convert"):
        exports.shapes("type,vcpu\na,many\n", "s.csv")
