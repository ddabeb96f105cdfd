"""docs/slurm_train.sh, with stand-ins for Slurm's commands: who runs what, and when it requeues."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "slurm_train.sh"
COMMANDS = {
    # one task of four; before it ends, the shell that started it gets SIGTERM as the tasks did
    "srun": """shift
export SLURM_PROCID=3 SLURM_LOCALID=1
"$@"
code=$?
kill -TERM $PPID
exit $code""",
    "scontrol": """case "$1" in
show) printf "node7\\nnode8\\n" ;;
*) echo "$@" >> requeued ;;
esac""",
    "python": """echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT" > seen
printf "%s\\n" "$@" >> seen
exit $CODE""",
}


@pytest.mark.parametrize(("code", "again"), [(0, False), (2, False), (143, True)])
def test_a_job_goes_on_after_sigterm_and_only_then(code, again, tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    for name, text in COMMANDS.items():
        file = tmp_path / name
        file.write_text(f"#!/bin/bash\n{text}\n")
        file.chmod(0o755)
    job = {"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NTASKS": "4"}
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(SCRIPT), "scripts/train_vae.py", "--config", "a file.yaml"],
        cwd=tmp_path,
        env={**os.environ, **job, "PATH": path, "CODE": str(code)},
        check=False,
    )
    assert done.returncode == code
    assert (tmp_path / "seen").read_text().splitlines() == [
        "3 1 4 node7 20042",
        "scripts/train_vae.py",
        "--config",
        "a file.yaml",
    ]
    assert (tmp_path / "requeued").exists() == again
    if again:
        assert (tmp_path / "requeued").read_text() == "requeue 42\n"
