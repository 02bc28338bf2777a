"""Look for the minimum of a quadratic in a hundred ways, and keep every run.

    python example_quadratic.py --out OUT_DIR

Kill it half way and read what is there; start it again and the new runs stand
beside the old ones.
"""

import argparse
import itertools
import shlex

from cox import CollectionReader, Store

STEP_SIZES = (0.01, 0.03, 0.1, 0.3, 1.0)
TOLERANCES = (1e-4, 1e-3, 1e-2, 1e-1)
STARTS = (-4.0, -1.0, 0.0, 1.0, 4.0)


def f(x: float) -> float:
    """What we minimise: 3 at x = 2.03."""
    return (x - 2.03) ** 2 + 3


def run(out_dir: str, step_size: float, tolerance: float, initial_x: float) -> None:
    """Make one run: its parameters, every step on the way, and where it ended."""
    with Store(out_dir) as store:
        parameters = {
            "step_size": step_size,
            "tolerance": tolerance,
            "initial_x": initial_x,
        }
        store.add_table("metadata", dict.fromkeys(parameters, float))
        store.add_table("steps", {"x": float, "f": float})
        store.add_table("result", {"final_x": float, "final_opt": float, "steps": int})
        store["metadata"].append_row(parameters)

        x = initial_x
        for _ in range(1000):
            # One row of the table and one point of each curve in TensorBoard.
            store.log_table_and_tb("steps", {"x": x, "f": f(x)})
            store["steps"].flush_row()
            x += step_size if f(x + step_size) < f(x - step_size) else -step_size
            if abs(f(x + step_size) - f(x - step_size)) < tolerance:
                break
        store["result"].append_row(
            {"final_x": x, "final_opt": f(x), "steps": store["steps"].nrows}
        )


def report(out_dir: str) -> None:
    """Collect all runs in ``out_dir``, filter them, and find the best."""
    with CollectionReader(out_dir) as reader:
        metadata, result, steps = map(reader.df, ("metadata", "result", "steps"))

    print(f"\nAll results ({len(result)} runs, {len(steps)} steps):")
    print(result)

    both = metadata.merge(result, on="exp_id").drop(columns="exp_id")
    near = both[both["final_opt"] < 3.001]
    print("\nThe quickest to come within 0.001 of the minimum:")
    print(near.nsmallest(3, "steps").to_string(index=False))

    best = result.nsmallest(1, "final_opt")["exp_id"]
    print("\nThe run that came closest:")
    print(metadata[metadata["exp_id"].isin(best)].to_string(index=False))


def main() -> None:
    """Make the runs of the whole grid, then read them back."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="quadratic_runs", metavar="OUT_DIR")
    out_dir = parser.parse_args().out
    grid = list(itertools.product(STEP_SIZES, TOLERANCES, STARTS))
    print(f"{len(grid)} runs into {out_dir}")
    for parameters in grid:
        run(out_dir, *parameters)
    report(out_dir)
    print(f"\nNow try: python -m cox tb --logdir {shlex.quote(out_dir)}")


if __name__ == "__main__":
    main()
