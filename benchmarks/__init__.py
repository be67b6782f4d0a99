"""resnet_lib against its peers: ratios measured in one run. `python -m benchmarks` prints them and writes nothing."""

from dataclasses import dataclass

from resnet_lib.bench import Spread, ratio


@dataclass(frozen=True)
class Target:
    """What a measurement must reach: its median counts, its range is shown."""

    text: str
    measured: Spread
    bound: float
    unit: str = "×"
    at_most: bool = False

    @property
    def reached(self) -> bool:
        return self.measured.median <= self.bound if self.at_most else self.measured.median >= self.bound

    def __str__(self) -> str:
        m = self.measured
        word = "pass" if self.reached else "FAIL"
        if m.min < self.bound < m.max:
            word += " (rounds on both sides)"
        sign = "≤" if self.at_most else "≥"
        found = f"{m.median:.3g}{self.unit} [{m.min:.3g} … {m.max:.3g}] of {m.n}"
        return f"{self.text} {sign} {self.bound:g}{self.unit}: {found} → {word}"


@dataclass(frozen=True)
class Table:
    """One benchmark's outcome: the rows of `bench.compare`, and its targets."""

    title: str
    rows: list[dict]
    targets: list[Target]
    reference: str = ""
    work: int = 0  # images per call

    def __str__(self) -> str:
        lines = [self.title]
        if self.rows:
            cells = [("variant", "images/s", "min … max", f"× {self.reference}", "min … max")]
            for row in self.rows:
                rate = [f"{self.work / row[key]:,.0f}" for key in ("time_s", "max_s", "min_s")]
                ratios = [f"{row[key]:.2f}" for key in ("ratio", "ratio_min", "ratio_max")]
                cells.append((row["name"], rate[0], " … ".join(rate[1:]), ratios[0], " … ".join(ratios[1:])))
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            for line in cells:
                aligned = [line[0].ljust(widths[0])]
                aligned += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
                lines.append("  " + "   ".join(aligned))
        return "\n".join(lines + [f"  {target}" for target in self.targets])


def faster(rows: list[dict], name: str, reference: str, bound: float, text: str = "") -> Target:
    """The target that one variant is `bound` times as fast as another of the same rounds."""
    times = {row["name"]: row["times_s"] for row in rows}
    return Target(text or f"{name} against {reference}", ratio(times[name], times[reference]), bound)
