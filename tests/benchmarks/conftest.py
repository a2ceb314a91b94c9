"""A checkout with made-up results of every kind."""

from pathlib import Path

import pytest

from benchmarks import export
from benchmarks.pages import ROOT
from benchmarks.results import load
from tests.benchmarks.untrained import evaluated_run


def made_up_rows(name, env_id, seed, evaluations, scale, arguments="", every=10_000, script=None):
    """Returns grow linearly: evaluation i (from 1) is scale * i + seed, deterministic twice and training half of it.
    Entropies are -seed; DiffWPO's were not recorded."""
    return [
        dict.fromkeys(export.COLUMNS, "1")
        | {
            "env_id": env_id,
            "exp_name": name,
            "script": script or name,
            "seed": str(seed),
            "global_step": str(every * i),
            "stochastic_return": str(scale * i + seed),
            "deterministic_return": str(2 * (scale * i + seed)),
            "training_return": str((scale * i + seed) / 2) if i > 1 else "",
            "entropy": "" if name == "diffwpo_jax" else str(-seed),
            "commit": "0123456789",
            "dirty": "false",
            "device": "cpu cpu",
            "wall_time": str(100.0 * i),
            "steps_per_second": str(100 * seed),
            "arguments": arguments,
        }
        for i in range(1, evaluations + 1)
    ]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """Results, published returns and other measurements under `benchmarks`; no pages yet."""
    root = tmp_path_factory.mktemp("checkout")
    folder = root / "benchmarks"
    for seed in (1, 2, 3):
        for env_id in ("Hopper-v4", "Walker2d-v4"):
            for name, scale in (("sac_jax", 10), ("diffsac_jax", 20), ("ppo_jax", 5), ("diffppo_jax", 10)):
                export.merge(made_up_rows(name, env_id, seed, 15, scale), folder / "results")
        for name, scale in (("ppo_playground", 10), ("diffppo_playground", 20)):
            rows = made_up_rows(name, "playground/CheetahRun", seed, 4, scale, script=name.replace("playground", "jax"))
            export.merge(rows, folder / "results")
        export.merge(made_up_rows("diffwpo_jax", "Hopper-v4", seed, 12, 15), folder / "results")
        for k in (1, 4):
            export.merge(made_up_rows(f"diffsac_k{k}", "Hopper-v4", seed, 9, k), folder / "results")
            export.merge(made_up_rows(f"diffppo_k{k}", "Hopper-v4", seed, 9, k), folder / "results")
        arguments = "--total-timesteps 4000 --gamma 0.9 --eval-episodes 200"
        for name, script, scale in (("d", "diffsac_jax", 0.2), ("s", "sac_jax", 0.1)):
            rows = made_up_rows(name, "m:HiddenTarget-v0", seed, 4, scale, arguments, every=1000, script=script)
            export.merge(rows, folder / "hidden_target")
    export.merge(
        made_up_rows("ppo_ent0.01", "Hopper-v4", 2, 9, 1, "--total-timesteps 90000 --ent-coef 0.01", script="ppo_jax"),
        folder / "results",
    )
    published = [
        f"{env_id},Published,{kind},100,20,{steps},3,{metric},nowhere"
        for env_id, kind, steps, metric in (
            ("Hopper-v2", "off-policy", 118_000, "deterministic"),
            ("Hopper-v4", "off-policy", 150_000, "deterministic"),
            ("Walker2d-v4", "off-policy", 150_000, "deterministic"),
            ("Hopper-v4", "on-policy", 152_000, "training"),
        )
    ]
    committed = (ROOT / "benchmarks" / "reference.csv").read_text()
    (folder / "reference.csv").write_text(committed + "\n".join([*published, ""]))
    (folder / "speed.csv").write_text(
        "quantity,value,how,commit,device,versions\nSAC update,1.8 ms,rows,0123456789,cpu,jax 0.10.2\n"
    )
    columns = "bandit,algorithm,K,updates,seed,elbo_gap,log_z_error,ess,worst_region,grid_kl,commit,device,versions\n"
    (folder / "bandit_k.csv").write_text(f"{columns}four,diffsac,2,60,1,0.9,0.0,0.4,0.9,0.6,{'0' * 40},cpu,jax 1\n")
    (folder / "bandit.csv").write_text(
        f"{columns}four,sac,,60,1,1.4,0.3,0.2,0.0,1.3,{'0' * 40},cpu,jax 1\n"
        f"four,diffsac,8,60,1,0.5,0.0,0.4,0.9,0.2,{'0' * 40},cpu,jax 1\n"
        f"two,sac,,60,1,0.4,0.1,0.9,0.0,0.3,{'0' * 40},cpu,jax 1\n"
    )
    columns = "script,exp_name,seed,global_step,arguments,commit,return,heading,left,middle,right\n"
    (folder / "turning.csv").write_text(
        f"{columns}sac_jax,s,1,30000,--gamma 0.9,0123456789,99.5,0,0.97,0.0,0.03\n"
        "sac_jax,s,1,30000,--gamma 0.9,0123456789,99.5,45,0.1,0.8,0.1\n"
        "diffsac_jax,d,2,30000,--total-timesteps 30000 --gamma 0.9,0123456789,97.0,0,0.45,0.1,0.45\n"
    )
    evaluated_run(folder / "agents" / "hopper", {2: [*range(10)]})
    return root


@pytest.fixture(scope="module")
def results(checkout):
    """The made up results of the checkout, loaded."""
    return load(checkout / "benchmarks" / "results")
