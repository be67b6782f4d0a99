"""Estimates with their uncertainty: intervals over seeds, paired differences, equivalence, seeds needed.

Everything takes numbers or rows (a list of plain dicts) and returns an Estimate or rows; nothing here knows
what was measured.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil, floor, log10, sqrt
from statistics import fmean

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval; `Estimate(**estimate.as_dict())` gives it back."""

    mean: float
    low: float
    high: float
    n: int  # values (for paired differences: pairs) behind the mean
    confidence: float  # of the two-sided interval; 1 if exact
    sd: float  # of the values, dividing by n - 1
    method: str
    unit: str = ""

    def as_dict(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        return format(self)

    def __format__(self, spec: str) -> str:
        """With no format given: decimals enough for two significant figures of the interval's half-width."""
        scale, unit = READ_AS.get(self.unit, (1, self.unit))
        mean, low, high = (scale * value for value in (self.mean, self.low, self.high))
        half = (high - low) / 2
        if not spec:
            decimals = max(0, 1 - floor(log10(half))) if half > 0 else 7
            spec = f".{decimals}f" if decimals < 7 else ".4g"
        unit = f" {unit}" if unit else ""
        if self.method == "exact":
            return f"{mean:{spec}}{unit} (exact)"
        return f"{mean:{spec}} [{low:{spec}}, {high:{spec}}]{unit} (n={self.n})"


# Fractions are kept as fractions and read as points of a hundred; a share of something as percent of it.
READ_AS = {"accuracy": (100, "points"), "error": (100, "points"), "share": (100, "%"), "relative": (100, "%")}


def quantity(value: float, unit: str) -> str:
    """A number with its unit, as a reader sees it."""
    scale, word = READ_AS.get(unit, (1, unit))
    return f"{scale * value:g} {word}".rstrip()


def exact(value: float, unit: str = "") -> Estimate:
    """Something counted or compared, not sampled: an interval of no width."""
    value = float(_finite([value])[0])
    return Estimate(value, value, value, n=1, confidence=1.0, sd=0.0, method="exact", unit=unit)


def interval(
    values: Iterable[float], *, confidence: float = 0.95, method: str = "t", unit: str = "", seed: int = 0
) -> Estimate:
    """Mean of independent values (one per seed) with a two-sided interval.

    Args:    method: "t" for a few roughly normal values; "log-t" for ratios: the geometric mean, and the t interval of
             the logarithms, so that twice and half as much are equally far from none; "bootstrap" (BCa) for
             skewed values, from about 20 on: resampling five cannot show a tail that none has.
    Raises:  ValueError for fewer than two values, values that are not finite, ratios that are not above 0, or an
             unknown method.
    Source:  scipy.stats.t, scipy.stats.bootstrap.
    """
    values = _finite(values)
    if len(values) < 2:
        raise ValueError(f"an interval needs at least 2 values, got {len(values)}: run more seeds")
    _fraction("confidence", confidence)
    if method not in ("t", "log-t", "bootstrap"):
        raise ValueError(f"method is {method!r}; allowed: 't', 'log-t', 'bootstrap'")
    if method == "log-t":
        if values.min() <= 0:
            raise ValueError(f"a ratio of {values.min():g} has no logarithm: every value must be above 0")
        logs = interval(np.log(values), confidence=confidence, unit=unit)
        mean, low, high = (float(np.exp(value)) for value in (logs.mean, logs.low, logs.high))
        return Estimate(mean, low, high, len(values), confidence, float(values.std(ddof=1)), method, unit)
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    if np.ptp(values) == 0:  # neither method is defined without spread
        mean = low = high = float(values[0])
        sd = 0.0
    elif method == "t":
        from scipy.stats import t

        low, high = t.interval(confidence, len(values) - 1, loc=mean, scale=sd / sqrt(len(values)))
    else:
        from scipy.stats import bootstrap

        low, high = bootstrap(
            (values,), np.mean, confidence_level=confidence, rng=np.random.default_rng(seed)
        ).confidence_interval
    return Estimate(mean, float(low), float(high), len(values), confidence, sd, method, unit)


def paired(
    a: Sequence[float],
    b: Sequence[float],
    *,
    confidence: float = 0.95,
    method: str = "t",
    unit: str = "",
    seed: int = 0,
) -> Estimate:
    """Mean of a - b, paired by position: what both share (seed, split, order) cancels."""
    return interval(_differences(a, b), confidence=confidence, method=method, unit=unit, seed=seed)


def paired_rows(
    rows: Iterable[dict], value: str, by: str, a: object, b: object, pair: tuple[str, ...] = ("seed",), **options
) -> Estimate:
    """Mean difference in `value` between rows with row[by] == a and rows with row[by] == b.

    Args:    pair: columns in which partners agree; options: as in `paired`.
    Raises:  ValueError naming the first row without a partner, or with two.
    """
    return paired(*_partners(rows, value, by, a, b, pair), **options)


def paired_ratio(
    rows: Iterable[dict],
    value: str,
    by: str,
    a: object,
    b: object,
    pair: tuple[str, ...] = ("seed",),
    unit: str = "times",
    **options,
) -> Estimate:
    """Geometric mean of `value` at row[by] == a over that at row[by] == b, a ratio a pair; else as `paired_rows`."""
    return interval(_ratios(*_partners(rows, value, by, a, b, pair)), unit=unit, **{"method": "log-t"} | options)


def paired_change(
    rows: Iterable[dict],
    value: str,
    by: str,
    a: object,
    b: object,
    pair: tuple[str, ...] = ("seed",),
    unit: str = "relative",
    **options,
) -> Estimate:
    """How much larger `value` is at a than at b, as a share: `paired_ratio` minus 1."""
    return shifted(paired_ratio(rows, value, by, a, b, pair, unit, **options), -1)


def widened(estimate: Estimate, confidence: float) -> Estimate:
    """The same estimate with its interval at another confidence.

    Exact for t and log-t, also where a constant was added to a ratio: the constant is what makes the interval's ends
    equally far from the mean on the log scale. A bootstrap interval's arms grow as a normal one's would.
    """
    from scipy.stats import norm, t

    if estimate.method == "exact" or confidence == estimate.confidence:
        return estimate
    ends = [(1 + level) / 2 for level in (confidence, estimate.confidence)]
    wide, own = norm.ppf(ends) if estimate.method == "bootstrap" else t.ppf(ends, estimate.n - 1)
    mean, arms = estimate.mean, (estimate.low - estimate.mean, estimate.high - estimate.mean)
    lopsided = sum(arms)
    if estimate.method == "log-t" and abs(lopsided) > 1e-9 * (arms[1] - arms[0]):
        scale = -arms[0] * arms[1] / lopsided  # the mean without the constant: its ends are it times or by one factor
        arms = tuple(scale * ((1 + arm / scale) ** (wide / own) - 1) for arm in arms)
    else:
        arms = tuple(arm * wide / own for arm in arms)
    return replace(estimate, low=float(mean + arms[0]), high=float(mean + arms[1]), confidence=confidence)


def shifted(estimate: Estimate, by: float, sign: int = 1) -> Estimate:
    """An estimate plus a constant; with sign=-1 the constant minus the estimate."""
    ends = sorted(by + sign * end for end in (estimate.low, estimate.high))
    return replace(estimate, mean=by + sign * estimate.mean, low=ends[0], high=ends[1])


def where(rows: Iterable[dict], **wanted) -> list[dict]:
    """The rows that have these values: where(rows, what="score", batch=8)."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def cell_means(rows: Iterable[dict], value: str, by: Sequence[str]) -> list[dict]:
    """A row for each cell of the columns `by`, in the order in which they first appear: its mean `value`."""
    cells: dict[tuple, list[float]] = {}
    for row in rows:
        cells.setdefault(tuple(row[name] for name in by), []).append(row[value])
    return [{**dict(zip(by, cell, strict=True)), value: fmean(values)} for cell, values in cells.items()]


def best_setting(rows: Iterable[dict], value: str, setting: str, highest: bool = False) -> object:
    """The value of the column `setting` whose rows have the lowest mean `value`; if `highest`, the highest mean.

    Of settings with equal means, the lower one: a gentler learning rate, a smaller network.
    Raises: ValueError where there is no row, or where a value is not finite.
    """
    groups: dict[object, list[float]] = {}
    for row in rows:
        groups.setdefault(row[setting], []).append(row[value])
    if not groups:
        raise ValueError(f"no rows: there is no {setting} to choose from")
    means = {key: float(_finite(values).mean()) for key, values in groups.items()}
    return min(sorted(means), key=lambda key: -means[key] if highest else means[key])


def at_an_end(chosen: Iterable, tried: Iterable) -> int:
    """How many of the chosen values are the lowest or the highest that was tried, beyond which a better one may lie."""
    tried = list(tried)
    return sum(value in (min(tried), max(tried)) for value in chosen)


def _ratios(a: list[float], b: list[float]) -> np.ndarray:
    a, b = _finite(a), _finite(b)
    if not b.all():
        raise ValueError(f"value 0 at position {int(np.flatnonzero(b == 0)[0])} of what is divided by")
    return a / b


def _partners(
    rows: Iterable[dict], value: str, by: str, a: object, b: object, pair: tuple[str, ...]
) -> tuple[list[float], list[float]]:
    """The values of both sides, in an order in which partners stand at the same place."""
    pair = _columns(pair)
    rows = list(rows)
    sides = []
    for wanted in (a, b):
        side = {}
        for row in rows:
            if row[by] != wanted:
                continue
            key = tuple(row[column] for column in pair)
            if key in side:
                raise ValueError(
                    f"two rows with {by}={wanted!r} and {_named(pair, key)}: "
                    f"filter the rows first, or pair on more columns than {pair}"
                )
            side[key] = row[value]
        if not side:
            there = ", ".join(sorted({repr(row[by]) for row in rows}))
            raise ValueError(f"no row with {by}={wanted!r}; there are {there or 'no rows'}")
        sides.append(side)
    for key in [*sides[0], *sides[1]]:
        for wanted, side in zip((a, b), sides, strict=True):
            if key not in side:
                raise ValueError(f"no row with {by}={wanted!r} and {_named(pair, key)}: every row needs a partner")
    return list(sides[0].values()), [sides[1][key] for key in sides[0]]


def equivalent(
    a: Sequence[float], b: Sequence[float] | None = None, *, margin: float, confidence: float = 0.95
) -> dict:
    """Two one-sided tests (TOST): is the mean of a - b (or of the differences `a`) within ±margin?

    Returns: equivalent (p < 1 - confidence), p_value (the larger of the two), and estimate, whose interval at
             1 - 2 (1 - confidence) lies within the margin exactly when `equivalent` is true.
    Source:  Schuirmann 1987, doi:10.1007/BF01068419; scipy.stats.ttest_1samp.
    """
    if not (np.isfinite(margin) and margin > 0):
        raise ValueError(f"margin is {margin}; it must be a finite number > 0")
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; an equivalence test needs one between 0.5 and 1")
    differences = _finite(a) if b is None else _differences(a, b)
    estimate = interval(differences, confidence=1 - 2 * (1 - confidence))
    if estimate.sd == 0:
        p_value = 0.0 if abs(estimate.mean) < margin else 1.0
    else:
        from scipy.stats import ttest_1samp

        p_value = float(
            max(
                ttest_1samp(differences, -margin, alternative="greater").pvalue,
                ttest_1samp(differences, margin, alternative="less").pvalue,
            )
        )
    return {"equivalent": p_value < 1 - confidence, "p_value": p_value, "estimate": estimate}


def seeds_needed(
    sd: float, effect: float, *, power: float = 0.8, confidence: float = 0.95, paired: bool = False
) -> int:
    """Seeds per arm with which a two-sided t test finds a difference of `effect` with probability `power`.

    Args:    sd: between seeds within one arm; if paired, of the differences between partners.
    Returns: seeds per arm (if paired: pairs), at least 2; a rejection in the wrong direction is not a find.
    """
    from scipy.stats import nct, norm, t

    if not (np.isfinite(sd) and sd >= 0 and np.isfinite(effect) and effect != 0):
        raise ValueError(f"sd is {sd}, effect is {effect}; sd must be >= 0 and effect not 0, both finite")
    _fraction("power", power)
    _fraction("confidence", confidence)
    if sd == 0:
        return 2
    arms, size, tail = (1 if paired else 2), abs(effect) / sd, (1 + confidence) / 2
    # the normal approximation is always too small, so it is where the search upwards starts
    n = max(2, ceil(arms * ((norm.ppf(tail) + norm.ppf(power)) / size) ** 2))
    while nct.sf(t.ppf(tail, arms * (n - 1)), arms * (n - 1), size * sqrt(n / arms)) < power:
        n += 1
    return n


def summarise(rows: Iterable[dict], value: str, by: tuple[str, ...], **options) -> list[dict]:
    """One row per group, in first-seen order: the columns in `by`, then mean, low, high, sd and n of `value`.

    Args:    options: as in `interval`.
    Raises:  ValueError naming the group whose values give no interval.
    """
    by = _columns(by)
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in by), []).append(row[value])
    summary = []
    for key, values in groups.items():
        try:
            estimate = interval(values, **options).as_dict()
        except ValueError as error:
            raise ValueError(f"{value} of {_named(by, key)}: {error}") from None
        summary.append(
            dict(zip(by, key, strict=True)) | {name: estimate[name] for name in ("mean", "low", "high", "sd", "n")}
        )
    return summary


def _finite(values: Iterable[float]) -> np.ndarray:
    values = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=float)
    if values.ndim != 1:
        raise ValueError(f"values have shape {values.shape}; they must be one flat list of numbers")
    if bad := np.flatnonzero(~np.isfinite(values)).tolist():
        raise ValueError(f"value {values[bad[0]]} at position {bad[0]}: every value must be a finite number")
    return values


def _differences(a: Sequence[float], b: Sequence[float]) -> np.ndarray:
    a, b = _finite(a), _finite(b)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values against {len(b)}: pairs need equally many on both sides")
    return a - b


def _fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} is {value}; it must be between 0 and 1")


def _columns(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _named(columns: tuple[str, ...], key: tuple) -> str:
    return ", ".join(f"{column}={value!r}" for column, value in zip(columns, key, strict=True))
