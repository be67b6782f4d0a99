"""Rates of arithmetic: what is kept of them, how they are compared."""

from resnet_lib import ceilings, stats


def slim(rows: list[dict]) -> list[dict]:
    """Rows with what figures and estimates read."""
    kept = "kind form side channels layout round rate error error_bound note"
    return [{k: r[k] for k in kept.split() if k in r} for r in rows]


def faster(rows, form: str, reference: str = "fp32", **where) -> stats.Estimate | None:
    """Rate over the reference's, in the rounds that measured both; None where there is none, or a result was wrong."""
    rows = [r for r in rows if all(r.get(k) == v for k, v in where.items())]
    rows = [r for r in rows if r["form"] in (form, reference)]
    if form not in {r["form"] for r in rows} or not all(ceilings.is_correct(r) for r in rows):
        return None
    rounds = [{r["round"] for r in rows if r["form"] == one} for one in (form, reference)]
    both = [r for r in rows if r["round"] in rounds[0] & rounds[1]]  # a product that one round took for too slow
    return stats.paired_ratio(both, "rate", "form", form, reference, pair=("round",))


def refuse_times(s) -> None:
    if s.rounds < 4:
        raise ValueError(f"rounds={s.rounds} must be at least 4")
    if s.seconds <= 0:
        raise ValueError(f"seconds={s.seconds} must be above 0")
