"""Times ifloo, the loops of older code, peer libraries and the machine itself on the same images and base model.

Each (work, method) runs in a separate process, timed after its data are loaded. Works: T1, scores of one test image;
T100, of a hundred; T10000, of all test images, written to disk; R500, refits without the 500 samples of largest |score|
on test image 8. Errors are relative to the largest exact score of each test (float64, residual <= 1e-10), and the worst
test counts. Memory is in GiB.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import growth, report
from bench.gemm import bound
from bench.methods import METHODS, WORKS, Method, chosen
from bench.task import Row, Task, launch

SHAPES = ((4096, 4096, 4096), (5000, 784, 7056), (784, 5000, 784))  # square; scores of a block; a Gram matrix
GROWTH_REFITS = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns 0 only if every requested method ran."""
    args = _parser().parse_args(argv)
    if args.task:
        return _work(args.task, args.row)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="ifloo_benchmark_") as temporary:
        folder = args.scores_dir or Path(temporary)
        for row in _measured(args, folder):
            rows.append(row)
            _print_progress(row)
            if args.json:
                report.save(rows, args.json)
    rows += [*bound(rows), *growth.exponents(rows)]
    table = report.markdown(rows)
    print(table, end="")
    if args.json:
        report.save(rows, args.json)
        args.json.with_suffix(".md").write_text(table)
        report.picture(rows, args.json.with_suffix(".png"))
    failed = [row for row in rows if row["error"] or (row["skipped"] and args.methods)]
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    flags.add_argument(
        "--work", type=_works, default=list(WORKS), help=f"works, separated by commas: {','.join(WORKS)}; default: all"
    )
    names = list(dict.fromkeys(m.name for m in METHODS))
    listed = ", ".join(names)
    flags.add_argument("--methods", type=_methods, help=f"methods, separated by commas: {listed}; default: the usual")
    flags.add_argument("--n", type=int, help="training images; default: 55000, or the 5000 that come with ifloo")
    flags.add_argument("--root", help="folder of the IDX files; default: the digits that come with ifloo")
    flags.add_argument("--tests", type=_at_least_nine, help="number of test images, 9 or more, since test 8 is used")
    flags.add_argument("--refits", type=int, default=500, help="number of refits in R500")
    flags.add_argument(
        "--growth", type=_counts, help="several n, separated by commas: T1, T100 and refits at each n, and exponents"
    )
    flags.add_argument("--json", type=Path, help="file of the rows; table and picture go beside it (.md, .png)")
    flags.add_argument("--scores_dir", type=Path, help="folder of base model and outputs; default: a temporary one")
    flags.add_argument("--accelerator", default="cpu", help="cpu or gpu")
    flags.add_argument("--devices", type=int, default=1, help="number of devices of ifloo; other methods use one")
    flags.add_argument("--peer_python", default=sys.executable, help="interpreter that has the peer libraries")
    flags.add_argument("--timeout", type=float, help="seconds a method may take; default: no limit")
    flags.add_argument("--task", type=Path, help=argparse.SUPPRESS)
    flags.add_argument("--row", type=Path, help=argparse.SUPPRESS)
    return flags


def _works(text: str) -> list[str]:
    return _known(text, WORKS, "work")


def _methods(text: str) -> list[str]:
    return _known(text, [m.name for m in METHODS], "method")


def _known(text: str, names: Sequence[str], what: str) -> list[str]:
    """Splits a list at its commas and checks the names.

    Raises:
        ArgumentTypeError: If a name is unknown.
    """
    chosen_names = [name.strip() for name in text.split(",") if name.strip()]
    if not chosen_names or (unknown := [name for name in chosen_names if name not in names]):
        raise argparse.ArgumentTypeError(
            f"no {what} {unknown if chosen_names else text!r}; choose from {', '.join(dict.fromkeys(names))}"
        )
    return chosen_names


def _counts(text: str) -> list[int]:
    return sorted({int(n) for n in text.split(",")})


def _at_least_nine(text: str) -> int:
    """Parses a number of test images.

    Raises:
        ArgumentTypeError: If test image 8 would be missing.
    """
    if int(text) < 9:
        raise argparse.ArgumentTypeError(f"{text} leaves out test image 8, the one of T1 and R500; give 9 or more")
    return int(text)


def _measured(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Yields all rows in the order in which they are measured."""
    if args.growth:
        for n in args.growth:
            yield from _at(args, folder / f"n{n}", n, ["T1", "T100", "R500"], min(args.refits, GROWTH_REFITS))
        return
    n = args.n or (55_000 if args.root else 5_000)
    if {"GEMM", "T10000"} & set(args.work):  # T10000 is compared with the machine's own speed
        yield from _machine(args, folder, n)
    if args.work == ["GEMM"]:
        return
    yield from _at(args, folder, n, args.work, args.refits)


def _machine(args: argparse.Namespace, folder: Path, n: int) -> Iterator[Row]:
    folder.mkdir(parents=True, exist_ok=True)
    common = {"folder": str(folder), "root": args.root, "n": n, "tests": args.tests, "accelerator": args.accelerator}
    for dtype in ("float32", "float64"):
        for shape in SHAPES:
            name = "x".join(map(str, shape))
            yield launch(Task("GEMM", name, "bench.gemm:peak", dtype=dtype, options={"shape": shape}, **common))
    if "T10000" in args.work:
        yield launch(Task("T10000", "bound: bytes", "bench.gemm:write", dtype="float32", **common))


def _at(args: argparse.Namespace, folder: Path, n: int, works: list[str], refits: int) -> Iterator[Row]:
    """Measures base model and exact scores, then every method of every work at one n; stops if the first two fail."""
    folder.mkdir(parents=True, exist_ok=True)
    common = {
        "folder": str(folder),
        "root": args.root,
        "n": n,
        "tests": args.tests,
        "refits": refits,
        "accelerator": args.accelerator,
    }
    needed = (
        Task("fit", "base model", "bench.base:fit", **common),
        Task("exact", "textbook float64", "bench.exact:make", options={"works": works}, **common),
    )
    for task in needed:
        row = launch(task)
        yield row
        if row["error"]:
            return
    for work in works:
        for method in chosen(args.methods, work):
            yield _one(args, method, work, common)


def _one(args: argparse.Namespace, method: Method, work: str, common: dict[str, object]) -> Row:
    options = dict(method.options)
    if work in method.units:
        options["units"] = method.units[work]
    devices = args.devices if method.name.startswith("ifloo") else 1
    task = Task(work, method.name, method.call, dtype=method.dtype, options=options, devices=devices, **common)
    row = launch(task, args.peer_python if method.peer else sys.executable, args.timeout)
    return row | {"note": "; ".join(filter(None, [method.note, row["note"]])) or None}


def _print_progress(row: Row) -> None:
    """Prints one line of progress."""
    found = row["error"] and f"FAILED: {row['error']}"
    found = found or (row["skipped"] and f"skipped: {row['skipped']}")
    if not found:
        found = (
            f"{row['gemm_gflops']:.0f} GFLOP/s" if row["gemm_gflops"] else row["note"] if row["wall_s"] is None else ""
        )
        found = found or f"{row['wall_s']:.3g} s, {row['peak_rss_gb']:.2f} GiB"
    print(f"{row['work']:>7}  n = {row['n']:,}  {row['method']} ({row['dtype']}): {found}", file=sys.stderr, flush=True)


def _work(task: Path, row: Path) -> int:
    """Runs one task in a worker process and writes its row."""
    from bench.worker import run

    done = run(Task(**json.loads(task.read_text())))
    row.write_text(json.dumps(done))
    return 0


if __name__ == "__main__":
    sys.exit(main())
