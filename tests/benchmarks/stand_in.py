"""A script that makes run folders like the others and does not train: for the tests of the sweep.

--behaviour finish; fail; nan; half (ends without a summary); wait (for a signal; finishes when resumed)
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    words = sys.argv[1:]
    given = {name[2:].replace("-", "_"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    if "resume" in given:
        folder = Path(given["resume"])
        args = json.loads((folder / "args.json").read_text())
    else:
        args = {"behaviour": "finish", "num_seeds": "1", **given}
        args |= {name: int(args[name]) for name in ("seed", "num_seeds", "total_timesteps")}
        seeds = args["seed"] if args["num_seeds"] == 1 else f"{args['seed']}-{args['seed'] + args['num_seeds'] - 1}"
        folder = Path(args["runs_folder"]) / f"{args['env_id']}__{args['exp_name']}__{seeds}__{time.time_ns()}"
        folder.mkdir(parents=True)
        versions = {"git_commit": "0123456789", "threads": os.environ["NPROC"]}
        (folder / "versions.json").write_text(json.dumps(versions))
        args |= {"layout": int(os.environ["RUN_FOLDER_LAYOUT"]), "script": "stand_in"}
        (folder / "args.json").write_text(json.dumps(args))
    print("running", folder, flush=True)
    summary = {"total_timesteps": args["total_timesteps"]}
    if args["behaviour"] == "fail":
        sys.exit("error: the reason of the failure")
    if args["behaviour"] == "half":
        return
    if args["behaviour"] == "wait" and "resume" not in given:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: sys.exit(128 + number))
        (folder / "waits").touch()
        while True:
            time.sleep(0.02)
    if args["behaviour"] == "nan":
        summary["stopped"] = {"1": {}}
    (folder / "summary.json").write_text(json.dumps(summary))
    sys.exit(3 if "stopped" in summary else 0)


if __name__ == "__main__":
    main()
else:  # who asks for the arguments has imported what they need; a process that only stands in need not
    from dataclasses import dataclass

    from harness import Experiment

    @dataclass(frozen=True)
    class Args(Experiment):
        exp_name: str = "stand_in"
        log_frequency: int = 100
        behaviour: str = "finish"
