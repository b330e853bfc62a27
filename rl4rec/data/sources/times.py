"""The time column of interactions: four kinds of times, which nothing mixes.

- number: whole or decimal, in any unit; kept as it is
- date: a day
- local: date and time without a zone
- instant: date and time with a zone; kept in UTC

Instants and local times are kept in microseconds, whatever unit they came in, so that equal times are equal in all
files. What comes in text is ISO 8601, or has the format that `data.columns.time_format` states.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import polars as pl

from rl4rec.errors import UserError, shown

_INSTANT = pl.Datetime("us", "UTC")

_EXACT = 2**53  # from here on a decimal number skips whole numbers
_APART = 300.0  # a factor between two ranges of numbers that only another unit explains: 1000, and room for growth
_EPOCH = 10**8  # seconds, milliseconds ... since 1970 are larger
_DAY = r"\d{4}-\d{2}-\d{2}"
_CLOCK = r"\d{2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?"
_ZONE = r" ?(?:[Zz]|UTC|GMT|[+-]\d{2}(?::?\d{2})?)"
_FORMS: dict[str, str] = {
    "number": r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?",
    "date": _DAY,
    "local": f"{_DAY}[Tt ]{_CLOCK}",
    "instant": f"{_DAY}[Tt ]{_CLOCK}{_ZONE}",
}
_WORDS = {
    "number": "a number",
    "date": "a date",
    "local": "a local time (without a zone)",
    "instant": "an instant (with a zone)",
}
_CLOCK_FORMATS = "HIMSTRp"  # directives of a format with a time of day

_log = logging.getLogger(__name__)


def time_kind(dtype: pl.DataType) -> str:
    """The kind of a column that `parse_times` returned: number, date, local or instant."""
    if dtype.is_numeric():
        return "number"
    return "date" if dtype == pl.Date else "instant" if dtype == _INSTANT else "local"


def parse_times(path: Path, column: pl.Series, lines: pl.Series, time_format: str | None = None) -> pl.Series:
    """Times of one file, all of one kind.

    Args:
        path: the file, for the message.
        column: as the file has it, without gaps.
        lines: the line of each entry, for the message.
        time_format: `strptime` format of text and whole numbers; None: ISO 8601 or numbers.

    Returns:
        Int64, Float64, `pl.Date`, `pl.Datetime("us")` or `pl.Datetime("us", "UTC")`.

    Raises:
        UserError: no time, or one of another kind than the first, with the line; or digits would be lost.
    """
    if column.dtype in (pl.Categorical, pl.Enum):
        column = column.cast(pl.String)
    if time_format is not None and (column.dtype == pl.String or column.dtype.is_numeric()):
        text = column if column.dtype == pl.String else _whole_text(path, column, lines)
        return _formatted(path, text.str.strip_chars(), lines, time_format)
    if column.dtype == pl.String:
        return _within_years(path, _from_text(path, column.str.strip_chars(), lines), lines)
    if column.dtype.is_integer():
        return _whole(path, column, lines)
    if column.dtype.is_float() or column.dtype.is_decimal():
        return _decimal(path, column, lines)
    if column.dtype == pl.Date:
        return _within_years(path, column, lines)
    if isinstance(column.dtype, pl.Datetime):
        return _in_microseconds(path, _within_years(path, column, lines))
    raise UserError(
        f"{path}: column '{column.name}' holds {column.dtype}. Times must be numbers, dates or ISO text. "
        "Convert the column."
    )


def join_times(parts: Sequence[tuple[Path, pl.Series]], column: str) -> list[pl.Series]:
    """The times of several files as one type.

    Args:
        parts: files and what `parse_times` returned for them.
        column: what the files call it, for the message.

    Raises:
        UserError: they are of different kinds, numbers of different units, or digits would be lost.
    """
    (first, times), *others = parts
    for path, other in others:
        kinds = time_kind(times.dtype), time_kind(other.dtype)
        if kinds[0] != kinds[1]:
            raise UserError(
                f"{path}: column '{column}' holds {_example(other)}, but that of {first} {_example(times)}: "
                "times must be of one kind in all files, or their order would be wrong. Convert those of one file."
            )
    if time_kind(times.dtype) != "number":
        return [part for _, part in parts]
    _require_one_unit(parts, column)
    if not any(part.dtype == pl.Float64 for _, part in parts):
        return [part for _, part in parts]
    for path, part in parts:
        if part.dtype == pl.Int64 and _largest(part) >= _EXACT:
            decimal = next(other for other, values in parts if values.dtype == pl.Float64)
            raise UserError(
                f"{path}: column '{column}' holds whole numbers beyond 2^53, and that of {decimal} fractions: "
                "together they would lose digits, and with them their order. Write all as whole numbers."
            )
    return [part.cast(pl.Float64) for _, part in parts]


def _example(times: pl.Series) -> str:
    kind, _, note = _WORDS[time_kind(times.dtype)].partition(" ")[2].partition(" (")
    return f"{kind}s {'(' + note + ' ' if note else ''}such as {times[0]}"


def _require_one_unit(parts: Sequence[tuple[Path, pl.Series]], column: str) -> None:
    """Refuse files whose numbers differ a thousandfold: seconds beside milliseconds.

    Numbers that grow, such as those of orders, have no such gap between one file and the next larger one.
    """
    sizes = sorted(((*_typical(part), path) for path, part in parts), key=lambda size: size[0])
    for (_, below, lower), (above, _, upper) in pairwise(sizes):
        if above / below >= _APART:
            raise UserError(
                f"{upper}: column '{column}' holds numbers of about {above:.3g}, but that of {lower} of "
                f"about {below:.3g}: one of them is in another unit (seconds, milliseconds ...). Convert the times of "
                "one file."
            )


def _typical(times: pl.Series) -> tuple[float, float]:
    """A middle and a large absolute value, both at least 10: the first numbers of a counter are no unit."""
    sizes = times.cast(pl.Float64).abs()
    return max(float(sizes.quantile(0.5) or 0), 10.0), max(float(sizes.quantile(0.99) or 0), 10.0)


def _largest(times: pl.Series) -> int:
    low, high = int(times.min() or 0), int(times.max() or 0)  # type: ignore[arg-type]
    return max(-low, high)


def _from_text(path: Path, text: pl.Series, lines: pl.Series) -> pl.Series:
    first = str(text[0])
    kind = next((kind for kind, form in _FORMS.items() if bool(text[:1].str.contains(f"^{form}$")[0])), None)
    if kind is None:
        raise UserError(
            f"{path}, line {lines[0]}: '{text.name}' is not a number or an ISO 8601 date: {shown(first)}. "
            "Mend that line, or state the format of your times in data.columns.time_format, such as '%d/%m/%Y %H:%M'."
        )
    other = ~text.str.contains(f"^{_FORMS[kind]}$")
    if not other.any():
        parsed = _from_numbers(path, text, lines) if kind == "number" else _from_iso(path, text, kind)
        other = parsed.is_null()
    if other.any():
        row = int(other.arg_true()[0])
        like = "" if row == 0 else f" like the first, {shown(first)}"
        raise UserError(
            f"{path}, line {lines[row]}: '{text.name}' is not {_WORDS[kind]}{like}: {shown(text[row])}. "
            "Mend or remove that line."
        )
    return parsed


def _from_numbers(path: Path, text: pl.Series, lines: pl.Series) -> pl.Series:
    """Whole numbers where all are whole; null where one is no finite number."""
    whole = text.cast(pl.Int64, strict=False)
    if not whole.has_nulls():
        return _one_unit_within(path, whole, lines)
    numbers = text.cast(pl.Float64, strict=False)
    _require_digits(path, text, numbers, lines)
    numbers = pl.select(pl.when(numbers.is_finite()).then(numbers)).to_series().alias(text.name)
    return numbers if numbers.has_nulls() else _exact(path, numbers, lines)


def _require_digits(path: Path, text: pl.Series, numbers: pl.Series, lines: pl.Series) -> None:
    """Refuse text with more digits than a decimal number keeps, such as nanoseconds behind the point."""
    long = text.str.contains(r"\.\d*[1-9]0*$") & (text.str.count_matches(r"\d") > 15)
    written = text.str.strip_prefix("+").str.strip_chars_end("0")
    lost = (long & numbers.is_finite() & (numbers.cast(pl.String).str.strip_chars_end("0") != written)).fill_null(False)
    if lost.any():
        row = int(lost.arg_true()[0])
        raise UserError(
            f"{path}, line {lines[row]}: '{text.name}' has more digits than a decimal number keeps: {text[row]}. Times "
            "would lose their order. Write whole numbers, in a smaller unit."
        )


def _exact(path: Path, numbers: pl.Series, lines: pl.Series, limit: int = _EXACT) -> pl.Series:
    """Decimals, whole numbers where all are whole; those beyond 2^53 would lose digits, and with them the order."""
    beyond = numbers.abs() >= limit
    if beyond.any():
        row = int(beyond.arg_true()[0])
        raise UserError(
            f"{path}, line {lines[row]}: '{numbers.name}' is about {numbers[row]:.6g}, and not all of these times are "
            "whole numbers of at most 64 bits: decimal numbers of this size lose digits, and with them their order. "
            "Write all as whole numbers, in a smaller unit where there are fractions."
        )
    whole = numbers.cast(pl.Int64)
    return _one_unit_within(path, whole if bool((whole == numbers).all()) else numbers, lines)


def _from_iso(path: Path, text: pl.Series, kind: str) -> pl.Series:
    """Dates, local times or instants of ISO text that has the right form; null where there is no such day or time."""
    if kind == "date":
        return text.str.to_date("%Y-%m-%d", strict=False)
    frame = text.str.replace("[Tt]", " ").str.replace(",", ".", literal=True).to_frame("text")
    clock = pl.col("text").str.extract(f"^({_DAY} {_CLOCK})")
    seconds = pl.when(clock.str.len_chars() == len("2024-05-01 10:00")).then(clock + ":00").otherwise(clock)
    local = seconds.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)
    if kind == "instant":
        zone = pl.col("text").str.extract(r"([+-]\d{2}:?(?:\d{2})?)$")  # null: UTC
        hours = zone.str.slice(1, 2).cast(pl.Int64)
        minutes = zone.str.slice(3).str.strip_chars_start(":").cast(pl.Int64, strict=False).fill_null(0)
        ahead = (hours * 60 + minutes) * pl.when(zone.str.starts_with("-")).then(-1).otherwise(1)
        ahead = pl.when(zone.is_null()).then(0).otherwise(pl.when((hours <= 14) & (minutes < 60)).then(ahead))
        local = (local - pl.duration(minutes=ahead)).dt.replace_time_zone("UTC")
    _say_lost(path, text.name, _count_finer(text), len(text))
    return frame.select(local.alias(text.name)).to_series()


def _formatted(path: Path, text: pl.Series, lines: pl.Series, time_format: str) -> pl.Series:
    # Python's %f is a fraction, that of polars a whole number of nanoseconds; and Python's %z takes a Z.
    directives = time_format.replace(".%f", "%.f").replace("%-", "%")
    zoned, clock = "%z" in directives, any(f"%{each}" in directives for each in _CLOCK_FORMATS)
    if zoned:
        text = text.str.replace("[Zz]$", "+0000")
    try:
        if clock or zoned:
            parsed = text.str.strptime(pl.Datetime("us", "UTC" if zoned else None), directives, strict=False)
        else:
            parsed = text.str.strptime(pl.Date, directives, strict=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise UserError(
            f"data.columns.time_format: {shown(time_format)} is no format of a date "
            f"({str(error).splitlines()[0][:120]}). Write one such as '%d/%m/%Y %H:%M'."
        ) from None
    if parsed.has_nulls():
        row = int(parsed.is_null().arg_true()[0])
        raise UserError(
            f"{path}, line {lines[row]}: '{text.name}' is not of data.columns.time_format {shown(time_format)}: "
            f"{shown(text[row])}. Mend or remove that line, or change the format."
        )
    if "%.f" in directives:
        _say_lost(path, text.name, _count_finer(text), len(text))
    return parsed


def _count_finer(text: pl.Series) -> int:
    """How many texts have digits beyond the microsecond."""
    return int(text.str.contains(r"[.,]\d{6}\d*[1-9]").sum())


def _whole_text(path: Path, column: pl.Series, lines: pl.Series) -> pl.Series:
    """Numbers such as 20240501 as text, for a format."""
    whole = column.cast(pl.Int64, strict=False)
    odd = whole.is_null() | (whole != column)
    if odd.any():
        row = int(odd.arg_true()[0])
        raise UserError(
            f"{path}, line {lines[row]}: '{column.name}' is not of data.columns.time_format: {column[row]}. "
            "Mend or remove that line, or change the format."
        )
    return whole.cast(pl.String)


def _within_years(path: Path, times: pl.Series, lines: pl.Series) -> pl.Series:
    """Refuse dates and times outside of the years 1 to 9999, such as those that stand for infinity."""
    if times.dtype.is_numeric() or times.is_empty():
        return times
    since = times.to_physical()
    if isinstance(times.dtype, pl.Datetime):
        since = since // ({"ms": 10**3, "us": 10**6, "ns": 10**9}[times.dtype.time_unit] * 86_400)
    outside = ~since.is_between(-719_162, 2_932_896)  # days since 1970
    if outside.any():
        row = int(outside.arg_true()[0])
        raise UserError(
            f"{path}, line {lines[row]}: '{times.name}' is outside of the years 1 to 9999. Mend or remove that line."
        )
    return times


def _whole(path: Path, column: pl.Series, lines: pl.Series) -> pl.Series:
    whole = column.cast(pl.Int64, strict=False)
    if whole.has_nulls():
        row = int(whole.is_null().arg_true()[0])
        raise UserError(
            f"{path}, line {lines[row]}: '{column.name}' does not fit 64 bits: {column[row]}. Mend or remove that line."
        )
    return _one_unit_within(path, whole, lines)


def _decimal(path: Path, column: pl.Series, lines: pl.Series) -> pl.Series:
    """Whole where all are: pandas turns whole numbers into floats where it has met a gap."""
    if column.dtype.is_float():
        bad = ~column.is_finite()
        if bad.any():
            row = int(bad.arg_true()[0])
            raise UserError(
                f"{path}, line {lines[row]}: '{column.name}' is not a number: {column[row]}. Mend or remove that line."
            )
        limit = 2**24 if column.dtype == pl.Float32 else _EXACT
        return _exact(path, column.cast(pl.Float64), lines, limit)
    whole = column.cast(pl.Int64, strict=False)
    if not whole.has_nulls() and bool((whole.cast(column.dtype) == column).all()):
        return _one_unit_within(path, whole, lines)
    _require_digits(path, column.cast(pl.String), column.cast(pl.Float64), lines)
    return _exact(path, column.cast(pl.Float64), lines)


def _one_unit_within(path: Path, numbers: pl.Series, lines: pl.Series) -> pl.Series:
    """Refuse seconds beside milliseconds (and the like) since 1970 in one file: numbers with a wide gap."""
    if max(-float(numbers.min()), float(numbers.max())) < _EPOCH * _APART:  # type: ignore[arg-type]
        return numbers  # such as seconds: nothing can be so much larger than what is since 1970
    sizes = numbers.cast(pl.Float64).abs()
    since = sizes.filter(sizes >= _EPOCH).unique().sort()
    gap = (since / since.shift(1) >= _APART).fill_null(False).arg_true()
    if gap.is_empty():
        return numbers
    low, high = (int((sizes == since[place]).arg_true()[0]) for place in (int(gap[0]) - 1, int(gap[0])))
    raise UserError(
        f"{path}: column '{numbers.name}' holds times of different units (seconds, milliseconds ...): {numbers[low]} "
        f"on line {lines[low]}, {numbers[high]} on line {lines[high]}. Convert some of them."
    )


def _in_microseconds(path: Path, column: pl.Series) -> pl.Series:
    assert isinstance(column.dtype, pl.Datetime)
    unit = column.dtype.time_unit
    if column.dtype.time_zone is not None:
        column = column.dt.convert_time_zone("UTC")
    found = column.dt.cast_time_unit("us")
    if unit == "ns":
        _say_lost(path, column.name, int((column.to_physical() % 1000 != 0).sum()), len(column))
    return found


def _say_lost(path: Path, name: str, count: int, total: int) -> None:
    if count:
        _log.warning(
            "%s: %d of %d times in column '%s' are finer than a microsecond: what is beyond it is cut off",
            path, count, total, name,
        )  # fmt: skip
