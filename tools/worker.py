"""Execute one notebook with papermill and report each cell as a line of JSON; `tools.execute` starts this."""

import json
import sys
import traceback
from pathlib import Path


def report(**event) -> None:
    print(json.dumps(event), flush=True)


def reporting_engine():
    """papermill's own engine, which also reports the cell that starts."""
    from papermill.engines import NBClientEngine

    class ReportingEngine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **options):
            cell_start = nb_man.cell_start
            total = sum(cell.cell_type == "code" for cell in nb_man.nb.cells)
            started = []

            def start(cell, cell_index=None, **kwargs):
                if cell.cell_type == "code":
                    started.append(cell_index)
                    report(cell=cell.get("id", str(cell_index)), index=cell_index, number=len(started), total=total)
                return cell_start(cell, cell_index, **kwargs)

            nb_man.cell_start = start
            return super().execute_managed_notebook(nb_man, kernel_name, **options)

    return ReportingEngine


def mark_failure(path: Path, message: str) -> None:
    """Give the cell that was running an error output: after a timeout papermill calls it completed."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    ran = [cell for cell in notebook.cells if cell.metadata.get("papermill", {}).get("start_time")]
    if ran and ran[-1].cell_type == "code":
        name, _, value = message.partition(": ")
        ran[-1].outputs.append(nbformat.v4.new_output("error", ename=name, evalue=value, traceback=[message]))
    nbformat.write(notebook, path)


def main(job: dict) -> int:
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.engines import papermill_engines
    from papermill.exceptions import PapermillExecutionError

    papermill_engines.register("reporting", reporting_engine())
    output = Path(job["output"])
    try:
        papermill.execute_notebook(
            job["source"],
            job["output"],
            parameters=job["parameters"],
            engine_name="reporting",
            kernel_name="python3",
            cwd=job["cwd"],
            execution_timeout=job["timeout"],
            progress_bar=False,
        )
    except PapermillExecutionError as error:
        report(end="failed", error=f"{error.ename}: {error.evalue}")
    except CellTimeoutError:
        message = f"CellTimeoutError: the cell ran longer than {job['timeout']} s (--timeout)"
        mark_failure(output, message)
        report(end="timeout", error=message)
    except DeadKernelError:
        message = "DeadKernelError: the kernel died (out of memory, or killed)"
        mark_failure(output, message)
        report(end="died", error=message)
    except Exception as error:
        traceback.print_exc()
        report(end="failed", error=f"{type(error).__name__}: {error}")
    else:
        report(end="ok")
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
