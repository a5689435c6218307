"""Numbers as people read them: 1.24 B, 21 400, 1 h 12 min, 9.8 GiB."""

import math


def grouped(number: int) -> str:
    """A whole number in groups of three: ``21 400``."""
    return f"{number:,}".replace(",", " ")


def count(number: int | float) -> str:
    """A large count with three significant digits and its power of a thousand: ``1.24 B``."""
    if not math.isfinite(number):
        return str(number)
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * size:
            return f"{_three_digits(number / size)} {letter}"
    return f"{number:.0f}" if float(number).is_integer() else _three_digits(number)


def duration(seconds: int | float) -> str:
    """A time in its two largest units: ``1 h 12 min``, ``3 min 5 s``, ``0.41 s``, ``85 ms``."""
    if not math.isfinite(seconds):
        return str(seconds)
    if seconds < 0.0995:
        return f"{_three_digits(1e3 * seconds)} ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    for size, unit, part, small in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = (whole % size) // part
            return f"{whole // size} {unit} {rest} {small}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


def gib(number: int | float) -> str:
    """Gibibytes: ``9.8 GiB``."""
    return f"{number:.1f} GiB" if number >= 0.1 else f"{number:.3f} GiB"


def percent(fraction: int | float) -> str:
    """A fraction as whole percent: ``52 %``."""
    return f"{100 * fraction:.0f} %"


def rate(number: int | float) -> str:
    """A learning rate in two digits: ``2.0e-4``."""
    mantissa, exponent = f"{number:.1e}".split("e") if number else ("0", "0")
    return f"{mantissa}e{int(exponent)}" if number else "0"


def _three_digits(number: int | float) -> str:
    size = abs(number)
    return f"{number:.{2 if size < 9.995 else 1 if size < 99.95 else 0}f}"
