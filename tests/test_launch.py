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


@pytest.mark.slow
def test_two_machines_train_one_run(tmp_path):
    write_shards(tmp_path / "la", 24, 4)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"run: {{dir: {tmp_path}/run}}\n"
        f"data: {{streams: 4, decode_threads: 1, sources: {{la: {{path: {tmp_path}/la, kind: la}}}}}}\n"
        "stages: {pretrain: {mixture: {la: 1}, steps: 2, global_batch: 8, micro_batch: 2, warmup_steps: 1}}\n"
    )
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NNODES": "2",
        "NPROC": "1",
        "HEAD": f"127.0.0.1:{free_port()}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = ["bash", str(ROOT / "launch" / "train_multi_node.sh"), str(config), "log.every_steps=1"]
    agents = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    outputs = [agent.communicate(timeout=300)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(outputs)
    assert manifest.read(manifest.resolve(tmp_path / "run")).world_size == 2
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2]


def test_a_multi_node_launch_without_its_variables_says_which(tmp_path):
    script = ROOT / "launch" / "train_multi_node.sh"
    bare = {name: value for name, value in os.environ.items() if name not in ("NNODES", "HEAD")}
    done = subprocess.run(["bash", str(script), "x.yaml"], env=bare, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "NNODES: how many machines" in done.stderr
