"""What a training step costs, in marginkit and in TRL, on the same data and weights, measured side by side.

    python benchmarks/speed.py --quick                 # K=4 in fp32, a quarter of an hour
    python benchmarks/speed.py --write                 # all of it, an hour and a half; writes docs/speed_measured.md
    python benchmarks/speed.py --write --long          # bf16 at K=2 and on the fly as well, two hours or more
    python benchmarks/speed.py --only sweep/           # cases whose name contains this
    python benchmarks/speed.py --device cuda --write   # the GPU table, docs/speed_measured_gpu.md

Each measurement is a process of its own with one thread; repeats are interleaved, every second one in reverse order. A
measurement during which the wall clock ran ahead of the CPU clock by more than a tenth (other work on the machine) is
taken again, twice at most, and marked if that did not help. With --work, what is done is not repeated when the command
is started again. Close everything else: the figures are those of a quiet machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import speed_page
from speed_cases import Case, cases
from speed_report import NOISY

ROOT = Path(__file__).parent.parent


def environment() -> dict[str, str]:
    """One thread, nothing from the network."""
    offline = {name: "1" for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")}
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    return {**os.environ, **offline, **threads, "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}


class Bench:
    """Runs cases in processes of their own and keeps what they found.

    Args:
        work: folder for the data, the stores and the results.
        device: cpu or cuda.
        attempts: how often a noisy measurement is taken at most.
    """

    def __init__(self, work: Path, device: str, attempts: int) -> None:
        self.work, self.device, self.attempts = work, device, attempts
        self.data = work / f"data-{device}"
        self.results = work / f"results-{device}.jsonl"
        self.found: list[dict[str, Any]] = []
        if self.results.is_file():
            self.found = [json.loads(line) for line in self.results.read_text(encoding="utf-8").splitlines()]

    def process(self, job: dict[str, Any], name: str) -> dict[str, Any]:
        """Run the worker on a job, with nothing cached; what it says goes to a file, whose end is shown if it fails."""
        scratch = self.work / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        job |= {"device": self.device, "data": str(self.data), "work": str(scratch)}
        job_file, out = self.work / "job.json", self.work / "out.json"
        job_file.write_text(json.dumps(job | {"out": str(out)}), encoding="utf-8")
        log = self.work / "worker.log"
        hub = {"HF_HOME": str(scratch / "hf")}
        with log.open("w", encoding="utf-8") as sink:
            command = [sys.executable, str(Path(__file__).resolve()), "--worker", str(job_file)]
            done = subprocess.run(command, env=environment() | hub, stdout=sink, stderr=subprocess.STDOUT)
        if done.returncode:
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
            raise SystemExit(f"{tail}\n{name}: the process failed with {done.returncode}; all it said is in {log}")
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        out.unlink()
        shutil.rmtree(scratch, ignore_errors=True)
        return found

    def prepare(self) -> None:
        """Make the model and the data, once."""
        mark = self.data / "ready"
        if not mark.is_file():
            self.data.mkdir(parents=True, exist_ok=True)
            self.process({"prepare": True}, "prepare")
            mark.touch()

    def measure(self, case: Case, repeat: int) -> dict[str, Any]:
        """One repeat of a case, again while it is noisy."""
        for attempt in range(self.attempts):
            began = time.perf_counter()
            told = self.process({"runs": ordered(case, repeat)}, case.name)
            told |= {"case": case.name, "repeat": repeat, "attempt": attempt, "wall": time.perf_counter() - began}
            told["noise"] = noise(told)
            if self.device == "cuda" or told["noise"] <= NOISY:
                break
            print(f"  wall / CPU {told['noise']:.2f}: other work on the machine, attempt {attempt + 1}", flush=True)
        with self.results.open("a", encoding="utf-8") as sink:
            sink.write(json.dumps(told) + "\n")
        self.found.append(told)
        return told

    def all(self, chosen: Sequence[Case], repeats: int) -> None:
        """Every repeat of every case that is not there yet, interleaved, with what is left."""
        done = {(told["case"], told["repeat"]) for told in self.found}
        todo = [(repeat, case) for repeat, case in interleaved(chosen, repeats) if (case.name, repeat) not in done]
        expected = spent = 0.0
        for number, (repeat, case) in enumerate(todo):
            left = sum(other.about for _, other in todo[number:]) * (spent / expected if expected else 1.0)
            print(f"[{number + 1}/{len(todo)}] {case.name}, repeat {repeat + 1}; {left / 60:.0f} min left", flush=True)
            told = self.measure(case, repeat)
            print(f"  {speed_page.in_a_line(case, told)}", flush=True)
            spent, expected = spent + told["wall"] * (told["attempt"] + 1), expected + case.about


def ordered(case: Case, repeat: int) -> list[dict[str, Any]]:
    """The trainings of a process; in the sweep in an order of the repeat's own, behind the warm-up."""
    first, *others = case.runs
    if case.section != "sweep":
        return list(case.runs)
    random.Random(repeat).shuffle(others)
    return [first, *others]


def interleaved(chosen: Sequence[Case], repeats: int) -> Iterator[tuple[int, Case]]:
    """All cases, then all again in reverse order, and so on; what is counted, not timed, once."""
    for repeat in range(repeats):
        for case in chosen if repeat % 2 == 0 else reversed(chosen):
            if repeat == 0 or case.section != "store":
                yield repeat, case


def noise(told: dict[str, Any]) -> float:
    """Wall over CPU seconds of the steps that count."""
    counted = [step for run in told["runs"] for step in run["steps"][run["warm"] :]]
    return sum(step["wall"] for step in counted) / max(1e-9, sum(step["cpu"] for step in counted)) if counted else 1.0


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="K=4 in fp32 alone")
    parser.add_argument("--long", action="store_true", help="bf16 at K=2 and with the reference on the fly too")
    parser.add_argument("--only", default="", help="cases whose name contains this; several, comma-separated")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    parser.add_argument("--repeats", type=int, default=3, help="of each case (3)")
    parser.add_argument("--attempts", type=int, default=3, help="how often a noisy measurement is taken at most (3)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--work", type=Path, help="folder for data and results, kept; default: a temporary one")
    parser.add_argument("--write", action="store_true", help="write the page under docs/, or to --out")
    parser.add_argument("--out", type=Path, help="the page; default docs/speed_measured.md, _gpu.md for cuda")
    parser.add_argument("--worker", metavar="JOB", help=argparse.SUPPRESS)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> str:
    """Parse arguments, measure, report."""
    options = arguments(given)
    if options.worker:
        import speed_worker

        speed_worker.main(options.worker)
        return ""
    with_trl = all(importlib.util.find_spec(name) for name in ("trl", "datasets"))
    wanted = [word for word in options.only.split(",") if word]
    chosen = [
        case
        for case in cases(options.device, quick=options.quick, with_trl=with_trl, long=options.long)
        if not wanted or any(word in case.name for word in wanted)
    ]
    if options.list:
        print("\n".join(case.name for case in chosen))
        return ""
    if options.device == "cuda" and not speed_page.gpu_name():
        raise SystemExit("--device cuda: no CUDA device here; run it where torch.cuda.is_available() is true")
    if not with_trl:
        print("trl or datasets is not installed: TRL is left out, our padded pairs stand in for it", flush=True)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench((options.work or Path(temporary)).resolve(), options.device, options.attempts)
        bench.work.mkdir(parents=True, exist_ok=True)
        bench.prepare()
        bench.all(chosen, options.repeats)
    words = " ".join(Path(word).name if word.startswith("/") else word for word in given or sys.argv[1:])
    about = speed_page.About(
        command=f"python benchmarks/speed.py {words}".strip(),
        device=options.device,
        minutes=(time.perf_counter() - began) / 60,
        commit=speed_page.commit(ROOT),
        with_trl=with_trl,
    )
    names = {case.name for case in chosen}
    text = speed_page.page(chosen, [told for told in bench.found if told["case"] in names], about)
    print(text)
    if options.write:
        page = options.out or ROOT / "docs" / f"speed_measured{'_gpu' if options.device == 'cuda' else ''}.md"
        page.write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    main()
