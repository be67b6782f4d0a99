"""What a user sees while chapters are executed, and at the end."""

import sys
import threading
import time

from tools.plan import Job, changes


class Display:
    """Live rows on a terminal; in a log one line, with the time, for each cell that starts."""

    def __init__(self, jobs: list[Job]):
        from rich.console import Console
        from rich.live import Live

        self.jobs, self.console, self.lock = jobs, Console(), threading.Lock()
        self.live = Live(get_renderable=self.rows, console=self.console, refresh_per_second=4, transient=True)

    def rows(self):
        from rich.table import Table

        table = Table(box=None, show_header=False)
        for job in self.jobs:
            if job.status == "running":
                seconds = time.perf_counter() - job.started
                table.add_row(job.chapter, f"cell {job.number}/{job.total or '?'}", job.cell, f"{seconds:.0f} s")
        return table

    def log(self, job: Job) -> None:
        if self.console.is_terminal and job.status == "running":
            return
        words = f"cell {job.number}/{job.total} {job.cell}" if job.status == "running" and job.cell else job.status
        if job.status == "running" and not job.cell:
            words = f"starts ({', '.join(changes(job))})"
        with self.lock:
            line = f"{time.strftime('%H:%M:%S')} {job.chapter}: {words}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self):
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_):
        if self.console.is_terminal:
            self.live.stop()


def summary(jobs: list[Job], profile: str, seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console() if sys.stdout.isatty() else Console(width=110)
    table = Table(title=f"profile {profile}, {seconds:.1f} s in all", title_justify="left")
    for name, side in (("chapter", "left"), ("status", "left"), ("time", "right"), ("slowest cell", "left")):
        table.add_column(name, justify=side)
    for job in jobs:
        table.add_row(job.chapter, job.status, f"{job.seconds:.1f} s" if job.seconds else "", Text(job.slowest))
    console.print(table)
    for job in jobs:
        if job.detail:
            console.print(f"{job.chapter} {job.status}: {job.detail}", markup=False, highlight=False, soft_wrap=True)
            if job.failed.exists():
                console.print(f"  what it had done: {job.failed}", markup=False, highlight=False, soft_wrap=True)
