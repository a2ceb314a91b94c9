"""A script that makes run folders like the others and does not train: for the tests of the sweep.

--behaviour finish; fail; nan; half (ends without a summary); wait (for a signal; finishes when resumed); stay (runs
until its folder has a file `go`)
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    words = sys.argv[1:]
    given = {name[2:].replace("-", "_"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    args = {"behaviour": "finish", "num_seeds": "1", **given}
    args |= {name: int(args[name]) for name in ("seed", "num_seeds", "total_timesteps")}
    folder = Path(args["runs_folder"]) / args["run_name"]
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("error: in use", file=sys.stderr)
        sys.exit(2)
    resumed = (folder / "args.json").exists()
    with (folder / "starts").open("a") as file:
        file.write("start\n")
    if not resumed:
        versions = {"git_commit": "0123456789", "threads": os.environ["NPROC"]}
        (folder / "versions.json").write_text(json.dumps(versions))
        args |= {"layout": int(os.environ["RUN_FOLDER_LAYOUT"]), "script": "stand_in"}
        (folder / "args.json").write_text(json.dumps(args))
        rows = "100,1.0,1,charts/episodic_return,-5.0\n100,1.0,1,charts/SPS,250.0\n"
        (folder / "scalars.csv").write_text(f"global_step,wall_time,seed,tag,value\n{rows}")
    print("running", folder, flush=True)
    summary = {"total_timesteps": args["total_timesteps"]}
    if args["behaviour"] == "fail":
        sys.exit("error: the reason of the failure")
    if args["behaviour"] == "half":
        return
    if args["behaviour"] == "wait" and not resumed:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: sys.exit(128 + number))
        (folder / "waits").touch()
        while True:
            time.sleep(0.02)
    if args["behaviour"] == "stay":
        (folder / "stays").touch()
        while not (folder / "go").exists():
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
        log_frequency: int = 100
        behaviour: str = "finish"
