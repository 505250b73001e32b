"""Why: a launcher that nobody ran fails on the cluster, at night. Two agents on one machine stand for two machines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from la4vla import manifest
from tests.fixtures import write_shards
from tests.train.launch import free_port

ROOT = Path(__file__).parents[1]


ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


def write_run(folder: Path) -> Path:
    """Two steps of `la` into folder/run."""
    write_shards(folder / "la", 24, 4)
    config = folder / "config.yaml"
    config.write_text(
        f"run: {{dir: {folder}/run}}\n"
        f"data: {{streams: 4, decode_threads: 1, sources: {{la: {{path: {folder}/la, kind: la}}}}}}\n"
        "stages: {pretrain: {mixture: {la: 1}, steps: 2, global_batch: 8, micro_batch: 2, warmup_steps: 1}}\n"
    )
    return config


@pytest.mark.slow
@pytest.mark.thorough
def test_one_machine_trains(tmp_path):
    command = ["bash", str(ROOT / "launch" / "train_single_node.sh"), str(write_run(tmp_path)), "run.seed=5"]
    done = subprocess.run(command, env={**ENVIRONMENT, "NPROC": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert manifest.read(manifest.resolve(tmp_path / "run")).step == 2


@pytest.mark.parametrize("launcher", ["train_single_node.sh", "train_multi_node.sh"])
def test_a_machine_without_a_gpu_is_one_sentence(launcher, tmp_path):
    """Torchrun's own answer is a traceback."""
    if any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists() or Path("/dev/dxg").exists():
        pytest.skip("this machine has a GPU")
    environment = {**ENVIRONMENT, "NNODES": "1", "HEAD": "127.0.0.1:1"}
    environment.pop("NPROC", None)
    command = ["bash", str(ROOT / "launch" / launcher), "configs/tiny/mixpt.yaml"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "has no GPU; say how many ranks to start: NPROC=2" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_slurm_job_of_two_machines_trains_one_run(tmp_path):
    """With stand-ins for SLURM's two commands: the first host of the list is the head, and srun runs a task a node,
    which is what a user of train_multi_node.sh types on each machine."""
    config = write_run(tmp_path)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text("#!/bin/sh\nprintf '127.0.0.1\\nnode1\\n'\n")
    (tools / "srun").write_text('#!/bin/sh\necho "$@" > "$SAID"\nshift\n"$@" &\n"$@" && wait $!\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node[0-1]", "SLURM_NNODES": "2", "SLURM_JOB_ID": str(free_port() % 20000)}
    environment = {**ENVIRONMENT, **job, "SLURM_CPUS_PER_TASK": "1", "NPROC": "1", "SAID": str(tmp_path / "said")}
    environment["PATH"] = f"{tools}:{environment['PATH']}"
    command = ["bash", str(ROOT / "launch" / "train_slurm.sh"), str(config), "log.every_steps=1"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "said").read_text().startswith("--kill-on-bad-exit=1 bash launch/train_multi_node.sh")
    assert manifest.read(manifest.resolve(tmp_path / "run")).world_size == 2
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2]


def test_a_multi_node_launch_without_its_variables_says_which(tmp_path):
    script = ROOT / "launch" / "train_multi_node.sh"
    bare = {name: value for name, value in os.environ.items() if name not in ("NNODES", "HEAD")}
    done = subprocess.run(["bash", str(script), "x.yaml"], env=bare, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "NNODES: how many machines" in done.stderr
