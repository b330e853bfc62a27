"""Times of a user's own files: one kind, one unit, no digit lost; and what is said where that cannot be."""

import datetime as dt
import json
import logging
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from rl4rec.data.ingest import ingest
from rl4rec.data.prepare import prepare
from rl4rec.data.raw import raw_files, read_raw
from rl4rec.data.sources.interactions import read_interactions
from rl4rec.data.store import list_store
from rl4rec.errors import UserError
from rl4rec.params import Columns, DataParams

UTC = dt.UTC


def csv(path: Path, *times: object, user: str = "u", item: str = "i") -> Path:
    path.parent.mkdir(exist_ok=True)
    rows = "".join(f"{user},{item}{place},{time}\n" for place, time in enumerate(times))
    path.write_text(f"user,item,timestamp\n{rows}")
    return path


def times_of(path: Path, time_format: str | None = None) -> list[object]:
    return read_interactions(path, Columns(time_format=time_format))["time"].to_list()


def raw(folder: Path) -> pl.DataFrame:
    params = DataParams(source="interactions", path=str(folder))
    return read_raw(params, raw_files(params, fetch=False))


# --- one unit in all files --------------------------------------------------------------------------


@pytest.mark.parametrize("units", [("ns", "us"), ("us", "ms"), ("ms", "ns")])
def test_typed_times_of_different_units_keep_their_order(tmp_path: Path, units: tuple[str, str]) -> None:
    start = dt.datetime(2024, 5, 1, 10)
    for name, unit, days in (("a", units[0], (0, 1, 2)), ("b", units[1], (3, 4, 5))):
        times = pl.Series([start + dt.timedelta(days=day) for day in days]).cast(pl.Datetime(unit))
        frame = pl.DataFrame({"user": ["u"] * 3, "item": [f"{name}{day}" for day in days], "timestamp": times})
        frame.write_parquet(tmp_path / f"{name}.parquet")
    data = prepare(DataParams(source="interactions", path=str(tmp_path), k_core=1), tmp_path.parent / "out")
    assert [data.item_ids[item] for item in data.sequences[0]] == ["a0", "a1", "a2", "b3", "b4", "b5"]


@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Seoul"])
def test_the_same_rows_in_another_unit_or_zone_are_known(tmp_path: Path, zone: str | None) -> None:
    times = pl.Series([dt.datetime(2024, 5, 1, 10, second=n) for n in range(8)]).dt.replace_time_zone(zone and "UTC")
    frame = pl.DataFrame({"user": ["u"] * 8, "item": [f"i{n}" for n in range(8)], "timestamp": times})
    frame.with_columns(pl.col("timestamp").dt.cast_time_unit("ns")).write_parquet(tmp_path / "ns.parquet")
    other = pl.col("timestamp") if zone is None else pl.col("timestamp").dt.convert_time_zone(zone)
    frame.with_columns(other.dt.cast_time_unit("ms")).write_parquet(tmp_path / "ms.parquet")
    assert ingest(tmp_path / "ns.parquet", tmp_path / "store", Columns()).added == 8
    again = ingest(tmp_path / "ms.parquet", tmp_path / "store", Columns())
    assert (again.added, again.known) == (0, 8)
    stamp = "%Y-%m-%dT%H:%M:%S" + ("Z" if zone else "")
    frame.with_columns(pl.col("timestamp").dt.strftime(stamp)).write_csv(tmp_path / "text.csv")
    assert ingest(tmp_path / "text.csv", tmp_path / "store", Columns()).known == 8


def test_whole_numbers_that_pandas_turned_into_decimals_are_known(tmp_path: Path) -> None:
    assert ingest(csv(tmp_path / "a.csv", 5, 6), tmp_path / "store", Columns()).added == 2
    assert ingest(csv(tmp_path / "b.csv", "5.0", "6.0"), tmp_path / "store", Columns()).known == 2
    floats = pl.DataFrame({"user": ["u", "u"], "item": ["i0", "i1"], "timestamp": [5.0, 6.0]})
    floats.write_parquet(tmp_path / "c.parquet")
    assert ingest(tmp_path / "c.parquet", tmp_path / "store", Columns()).known == 2
    assert ingest(csv(tmp_path / "d.csv", 5, 6.5), tmp_path / "store", Columns()).added == 1  # decimals beside whole


def test_what_is_finer_than_a_microsecond_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = csv(tmp_path / "a.csv", "2024-05-01T10:00:00.000001000")
    with caplog.at_level(logging.WARNING):
        assert times_of(whole) == [dt.datetime(2024, 5, 1, 10, microsecond=1)]
        assert caplog.text == ""
        times_of(csv(tmp_path / "b.csv", "2024-05-01T10:00:00.000001001", "2024-05-01T10:00:00"))
        assert "1 of 2 times in column 'timestamp' are finer than a microsecond" in caplog.text
        caplog.clear()
        stamps = pl.Series([1001, 2000, 3000]).cast(pl.Datetime("ns"))
        pl.DataFrame({"user": ["u"] * 3, "item": ["i"] * 3, "timestamp": stamps}).write_parquet(tmp_path / "c.parquet")
        times_of(tmp_path / "c.parquet")
        assert "c.parquet: 1 of 3 times" in caplog.text


# --- one kind in all files --------------------------------------------------------------------------

KINDS = {
    "numbers": 1714557602,
    "dates": "2024-05-01",
    "local times": "2024-05-01T10:00:00",
    "instants": "2024-05-01T10:00:00Z",
}


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_kinds_do_not_mix(tmp_path: Path, first: str, second: str) -> None:
    csv(tmp_path / "in" / "1.csv", KINDS[first])
    csv(tmp_path / "in" / "2.csv", KINDS[second])
    if first == second:
        assert len(raw(tmp_path / "in")) == 2
        return
    with pytest.raises(UserError, match=rf"2\.csv: column 'timestamp' holds {second} .*1\.csv {first} .*of one kind"):
        raw(tmp_path / "in")
    ingest(tmp_path / "in" / "1.csv", tmp_path / "store", Columns())
    with pytest.raises(UserError, match=rf"2\.csv: column 'timestamp' holds {second} .*part-00000.* {first} "):
        ingest(tmp_path / "in" / "2.csv", tmp_path / "store", Columns())


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_kinds_do_not_mix_in_one_file(tmp_path: Path, first: str, second: str) -> None:
    if first != second:
        with pytest.raises(UserError, match=r"line 3: 'timestamp' is not an? .* like the first"):
            times_of(csv(tmp_path / "a.csv", KINDS[first], KINDS[second]))


@pytest.mark.parametrize(
    ("small", "factor"), [(1714557602, 1000), (1714557602, 10**6), (1714557602000, 1000), (5, 1000)]
)
@pytest.mark.parametrize("later_first", [False, True])
def test_numbers_a_thousandfold_apart_are_refused(tmp_path: Path, small: int, factor: int, later_first: bool) -> None:
    names = ("2.csv", "1.csv") if later_first else ("1.csv", "2.csv")
    csv(tmp_path / "in" / names[0], *(small + n for n in range(20)))
    csv(tmp_path / "in" / names[1], *((small + n) * factor for n in range(20, 40)))
    with pytest.raises(
        UserError, match=rf"{names[1]}: .* numbers of about \S+, but that of .*{names[0]} of about \S+: .*unit"
    ):
        raw(tmp_path / "in")
    ingest(tmp_path / "in" / "1.csv", tmp_path / "store", Columns())
    with pytest.raises(UserError, match="in another unit"):
        ingest(tmp_path / "in" / "2.csv", tmp_path / "store", Columns())


def test_numbers_that_grow_from_file_to_file_are_read(tmp_path: Path) -> None:
    for part, start in enumerate((1, 200, 40_000, 8_000_000)):
        csv(tmp_path / "in" / f"{part}.csv", *range(start, start + 100))
    assert len(raw(tmp_path / "in")) == 400


def test_seconds_beside_milliseconds_in_one_file_are_refused(tmp_path: Path) -> None:
    message = r"different units .*: 1714557603 on line 3, 1714557602000 on line 4"
    with pytest.raises(UserError, match=message):
        times_of(csv(tmp_path / "a.csv", 1714557602, 1714557603, 1714557602000))
    grown = [3 * 10**8 * 7**n for n in range(9)]  # no gap: a number that grew
    assert times_of(csv(tmp_path / "c.csv", *grown)) == grown
    assert times_of(csv(tmp_path / "b.csv", -2208988800, 0, 1714557602)) == [-2208988800, 0, 1714557602]


# --- text -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "2024-05-01T10:00:00Z",
        "2024-05-01 10:00Z",
        "2024-05-01T12:00:00+02:00",
        "2024-05-01 12:00:00.000+0200",
        "2024-05-01T05:00:00-05",
        "2024-05-01 10:00:00 UTC",
        "2024-05-01t15:30:00+05:30",
    ],
)
def test_instants_are_kept_in_utc(tmp_path: Path, text: str) -> None:
    assert times_of(csv(tmp_path / "a.csv", text)) == [dt.datetime(2024, 5, 1, 10, tzinfo=UTC)]


@pytest.mark.parametrize(
    "text",
    ["03/01/2024", "2024/01/03", "3.1.2024", "Jan 3 2024", "2024-13-01", "2024-05-01T25:00", "2024-05-01T10:00+99:00"],
)
def test_what_is_no_iso_time_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"a\.csv, line 2: 'timestamp' is not .*" + text.replace("+", r"\+")):
        times_of(csv(tmp_path / "a.csv", text))


def test_the_message_names_the_setting_for_other_formats(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.columns\.time_format"):
        times_of(csv(tmp_path / "a.csv", "03/01/2024"))


def test_a_format_of_ones_own(tmp_path: Path) -> None:
    days = csv(tmp_path / "a.csv", "03/01/2024", "13/01/2024")
    assert times_of(days, "%d/%m/%Y") == [dt.date(2024, 1, 3), dt.date(2024, 1, 13)]
    fine = csv(tmp_path / "b.csv", "01/03/24 09:05:06.25 PM +0100")
    assert times_of(fine, "%m/%d/%y %I:%M:%S.%f %p %z") == [dt.datetime(2024, 1, 3, 20, 5, 6, 250_000, tzinfo=UTC)]
    assert times_of(csv(tmp_path / "c.csv", 20240103), "%Y%m%d") == [dt.date(2024, 1, 3)]
    pl.DataFrame({"user": ["u"], "item": ["i"], "timestamp": [20240103]}).write_parquet(tmp_path / "d.parquet")
    assert times_of(tmp_path / "d.parquet", "%Y%m%d") == [dt.date(2024, 1, 3)]
    with pytest.raises(
        UserError, match=r"a\.csv, line 3: .* not of data\.columns\.time_format '%m/%d/%Y': '13/01/2024'"
    ):
        times_of(days, "%m/%d/%Y")
    # what the store keeps has a type of its own and needs no format
    columns = Columns(time_format="%d/%m/%Y")
    assert ingest(days, tmp_path / "store", columns).added == 2
    assert ingest(days, tmp_path / "store", columns).known == 2


# --- digits -----------------------------------------------------------------------------------------


def test_nanoseconds_keep_their_order_or_are_refused(tmp_path: Path) -> None:
    close = [1714557602123456789, 1714557602123456790]
    assert times_of(csv(tmp_path / "a.csv", *close)) == close
    with pytest.raises(UserError, match="line 4: 'timestamp' has more digits than a decimal number keeps: 17145"):
        times_of(csv(tmp_path / "b.csv", *close, "1714557602123456791.5"))
    for name, third in (("c.csv", "1.5"), ("d.csv", "1e3")):
        with pytest.raises(UserError, match=r"line 2: 'timestamp' is about 1\.71456e\+18, .* lose digits"):
            times_of(csv(tmp_path / name, *close, third))
    csv(tmp_path / "in" / "1.csv", *close)
    csv(tmp_path / "in" / "2.csv", *(f"{time / 1e3:.1f}" for time in close[:1]))
    with pytest.raises(UserError):
        raw(tmp_path / "in")


def test_decimals_in_parquet_are_whole_where_they_can_be(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"

    def written(times: pl.Series) -> list[object]:
        pl.DataFrame({"user": ["u"] * len(times), "item": ["i"] * len(times), "timestamp": times}).write_parquet(path)
        return times_of(path)

    assert written(pl.Series([1.0, 2.0])) == [1, 2]
    with pytest.raises(UserError, match="lose digits"):
        written(pl.Series([1714521600123456789.0, 1714521600123456999.0]))  # two nanoseconds that are one float
    with pytest.raises(UserError, match="lose digits"):
        written(pl.Series([1714521600.0, 1714521640.0], dtype=pl.Float32))
    assert written(pl.Series([1.5, 2.0])) == [1.5, 2.0]
    assert written(pl.Series(["1714557602123456789", "1714557602123456790"]).cast(pl.Decimal(38, 0))) == [
        1714557602123456789, 1714557602123456790,
    ]  # fmt: skip
    with pytest.raises(UserError, match="lose digits"):
        written(pl.Series([1.5, 2.0**60]))


def test_seconds_with_nanoseconds_behind_the_point(tmp_path: Path) -> None:
    python = [1714521600.123456, 1714521600.1234567]  # as Python prints its clock: every digit is kept
    assert times_of(csv(tmp_path / "a.csv", *python)) == python
    message = r"line \d: 'timestamp' has more digits than a decimal number keeps: 1714521600\.123456788"
    with pytest.raises(UserError, match=message):
        times_of(csv(tmp_path / "b.csv", "1714521600.123456788", "1714521600.123456789"))
    exact = pl.Series(["1714521600.123456788", "1714521600.123456789"]).cast(pl.Decimal(38, 9))
    pl.DataFrame({"user": ["u", "u"], "item": ["i", "j"], "timestamp": exact}).write_parquet(tmp_path / "c.parquet")
    with pytest.raises(UserError, match=message):
        times_of(tmp_path / "c.parquet")


# --- what other writers make ------------------------------------------------------------------------


def test_int96_of_spark_and_names_of_zones(tmp_path: Path) -> None:
    times = [dt.datetime(2024, 1, 1), dt.datetime(9999, 12, 31), dt.datetime(1600, 1, 1)]
    columns = {"user": ["u"] * 3, "item": list("abc")}
    table = pa.table(columns | {"timestamp": pa.array(times, pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    assert times_of(tmp_path / "a.parquet") == times
    for zone in ("+02:00", "Europe/Berlin"):
        instants = pa.array([dt.datetime(2024, 1, 1, tzinfo=UTC)] * 3, pa.timestamp("ms", zone))
        pq.write_table(pa.table(columns | {"timestamp": instants}), tmp_path / "b.parquet")
        assert times_of(tmp_path / "b.parquet") == [dt.datetime(2024, 1, 1, tzinfo=UTC)] * 3


@pytest.mark.parametrize(
    "times",
    [
        pa.array([2**63 - 1], pa.timestamp("ms")),
        pa.array([2**31 - 1], pa.date32()),
        pa.array([2**62], pa.timestamp("us")),
    ],
)
def test_what_stands_for_never_is_refused_with_its_line(tmp_path: Path, times: pa.Array) -> None:
    pq.write_table(pa.table({"user": ["u"], "item": ["i"], "timestamp": times}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet, line 1: 'timestamp' is outside of the years 1 to 9999"):
        times_of(tmp_path / "a.parquet")


def test_text_of_other_columns_types(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": ["u"], "item": ["i"], "timestamp": ["2024-05-01 10:00:00,5"]})
    frame.with_columns(pl.col("timestamp").cast(pl.Categorical)).write_parquet(tmp_path / "a.parquet")
    assert times_of(tmp_path / "a.parquet") == [dt.datetime(2024, 5, 1, 10, microsecond=500_000)]
    ids = pl.Series([12345678901234567890], dtype=pl.Decimal(38, 0))
    pl.DataFrame({"user": ids, "item": ids, "timestamp": [1]}).write_parquet(tmp_path / "b.parquet")
    assert read_interactions(tmp_path / "b.parquet", Columns())["user"].to_list() == ["12345678901234567890"]


def test_json_of_mixed_numbers_and_ids(tmp_path: Path) -> None:
    rows = [(1, 1714521600), ("a", 1714521600.5), (18446744073709551615, 1714521601)]
    lines = [json.dumps({"user": user, "item": "i", "timestamp": time}) for user, time in rows]
    for name, order in (("a", lines), ("b", lines[::-1])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(order))
        read = read_interactions(tmp_path / f"{name}.jsonl", Columns()).sort("time")
        assert read["user"].to_list() == ["1", "a", "18446744073709551615"]
        assert read["time"].to_list() == [1714521600, 1714521600.5, 1714521601]


def test_parts_without_rows_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    csv(tmp_path / "in" / "1.csv", 1)
    csv(tmp_path / "in" / "2.csv")
    with caplog.at_level(logging.WARNING):
        assert len(raw(tmp_path / "in")) == 1
    assert "1 of 2 files of the data folder have no rows" in caplog.text
    (tmp_path / "in" / "1.csv").unlink()
    with pytest.raises(UserError, match="no records"):
        raw(tmp_path / "in")


def test_working_files_of_writers_are_no_tables(tmp_path: Path) -> None:
    csv(tmp_path / "in" / "part-0.csv", 1)
    (tmp_path / "in" / "_SUCCESS").touch()
    csv(tmp_path / "in" / "_temporary" / "part-0.csv", 1)
    assert len(raw(tmp_path / "in")) == 1
    assert [path.name for path in list_store(tmp_path / "in").left_out] == ["part-0.csv"]


@pytest.mark.parametrize(
    ("time_format", "message"),
    [
        ("%Y-%m-%d %H:%M:%S,%f", "must follow a dot"),
        ("%Y-%m-%d %H:%M %Z", "%Z is not known"),
        ("%H:%M", "with its year"),
        ("%d/%m/%Y %H", "hours need minutes"),
        ("%d/%m/%Y %I:%M", "needs %p"),
        ("%Q%%", "%Q is not known"),
    ],
)
def test_formats_that_would_be_misread_are_refused(time_format: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Columns(time_format=time_format)


def test_a_format_with_a_zone_takes_a_z(tmp_path: Path) -> None:
    path = csv(tmp_path / "a.csv", " 01.05.2024 10:00Z ", "01.05.2024 12:00+02:00")
    assert times_of(path, "%d.%m.%Y %H:%M%z") == [dt.datetime(2024, 5, 1, 10, tzinfo=UTC)] * 2


def test_ids_like_decimals_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read_interactions(csv(tmp_path / "a.csv", 1, 2, user="5.0"), Columns())
    assert "the ids in column 'user' are like '5.0'" in caplog.text


def test_a_fraction_elsewhere_leaves_the_ties_of_whole_numbers_as_they_are(tmp_path: Path) -> None:
    rows = [(f"u{user}", f"i{item}", 1) for user in range(20) for item in range(6)]
    settings = {"source": "interactions", "k_core": 1}
    hashes = []
    for name, more in (("a", []), ("b", [("new", "i0", 2.5), ("new", "i1", 3.5), ("new", "i2", 4.5)])):
        pl.DataFrame([*map(list, rows), *map(list, more)], schema=["user", "item", "timestamp"], orient="row",
                     strict=False).write_csv(tmp_path / f"{name}.csv")  # fmt: skip
        data = prepare(DataParams(**settings, path=str(tmp_path / f"{name}.csv")), tmp_path / "out")
        hashes.append({user: data.sequences[row].tolist() for row, user in enumerate(data.users) if user != "new"})
    assert hashes[0] == hashes[1]
