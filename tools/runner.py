"""Execute chapters in child processes that can be stopped, and keep what is finished whole."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from resnet_lib.paths import write_atomically
from tools.chapters import ROOT
from tools.plan import Job


def kernel_environment(root: Path, threads: int | None = None) -> dict[str, str]:
    """This process's environment, with the kernels' noise off and their files kept out of the home folder."""
    build = root / "_build"
    config = build / "ipython" / "profile_default" / "ipython_kernel_config.py"
    if not config.is_file():  # ipykernel warns of TCP without encryption at every start
        config.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(config, "c.IPKernelApp.log_level = 40\n")
    environment = {
        **os.environ,
        "IPYTHONDIR": str(build / "ipython"),
        "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's python3 kernel, not one in the home folder
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "BOOK_PAGE": "1",  # what is executed here becomes a page: the published records come first (resnet_lib.study)
    }
    environment.setdefault("MPLCONFIGDIR", str(build / "matplotlib"))
    if threads:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    return environment


class Runner:
    """Executes jobs in child processes; `stop` ends them all and leaves no half-written file."""

    def __init__(self, root: Path, timeout_s: int, log):
        self.root, self.timeout_s, self.log = root, timeout_s, log
        self.children: list[subprocess.Popen] = []
        self.stopping = False
        self.lock = threading.Lock()

    def run(self, job: Job, environment: dict) -> None:
        job.output.parent.mkdir(parents=True, exist_ok=True)
        order = {
            "source": str(job.source),
            "output": str(job.partial),
            "parameters": job.parameters,
            "timeout": self.timeout_s,
            "cwd": str(job.source.parent),
        }
        end = {"end": "failed", "error": "the process that executes the notebook ended without a word"}
        with tempfile.TemporaryFile("w+") as errors:
            with self.lock:
                if self.stopping:
                    job.status = "stopped"
                    return
                job.status, job.started = "running", time.perf_counter()
                child = subprocess.Popen(
                    [sys.executable, "-m", "tools.worker", json.dumps(order)],
                    cwd=ROOT,
                    env=environment,
                    text=True,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    start_new_session=True,
                )
                self.children.append(child)
            self.log(job)
            cell_started = job.started
            for line in child.stdout:
                now, event = time.perf_counter(), json.loads(line)
                if job.cell:
                    job.cell_times_s[job.cell] = now - cell_started
                if "end" in event:
                    end = event
                    continue
                job.cell, job.number, job.total, cell_started = (event["cell"], event["number"], event["total"], now)
                self.log(job)
            child.wait()
            job.seconds = time.perf_counter() - job.started
            if self.stopping:
                job.status = "stopped"
            elif end["end"] == "ok":
                self.keep(job)
            else:
                errors.seek(0)
                words = f" in cell {job.cell!r}" if job.cell else ""
                job.status, job.detail = end["end"], f"{end['error']}{words}"
                if not job.cell or end["end"] == "died":
                    job.detail += "\n" + "".join(errors.readlines()[-30:])
                if job.partial.exists():
                    os.replace(job.partial, job.failed)
        self.log(job)

    def keep(self, job: Job) -> None:
        job.status = "ran"
        job.stamp.unlink(missing_ok=True)  # a notebook without its stamp is executed again
        os.replace(job.partial, job.output)
        facts = {
            "ingredients": job.ingredients,
            "seconds": job.seconds,
            "cell_times_s": job.cell_times_s,
            "parameters": job.parameters,
        }
        write_atomically(job.stamp, json.dumps(facts, indent=1))
        job.failed.unlink(missing_ok=True)

    def stop(self) -> None:
        import psutil

        with self.lock:
            self.stopping = True
            children = [child for child in self.children if child.poll() is None]
        tree = []
        for child in children:
            try:
                process = psutil.Process(child.pid)
                tree += [process, *process.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
        for process in tree:  # each kernel is in a session of its own: no signal to a group reaches them all
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
