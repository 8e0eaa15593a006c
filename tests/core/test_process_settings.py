"""Settings of a process: what they are for shows in CPU time and page faults."""

import os
import subprocess
import sys

PROGRAM = """
import resource, time, sys
import numpy as np
import torch
from fusionocc_core.process import arrange_process
if sys.argv[1] == "arranged":
    arrange_process()
points, turn = np.ones((40000, 3), np.float32), np.ones((3, 3), np.float32)
for _ in range(12):
    torch.zeros(10_000_000)
began, faults = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    points @ turn.T
    torch.zeros(10_000_000)
    time.sleep(0.02)
usage = resource.getrusage(resource.RUSAGE_SELF)
print(time.process_time() - began, usage.ru_minflt - faults, torch.get_num_threads())
"""


def run(how):
    command = [sys.executable, "-c", PROGRAM, how]
    calm = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}  # PyTorch's threads, which spin as well
    calm.pop("OMP_NUM_THREADS", None)
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, env=calm)
    seconds, faults, threads = answer.stdout.split()
    return float(seconds), int(faults), int(threads)


def test_arranged_processes_keep_memory_and_do_not_spin():
    seconds, faults, threads = run("arranged")
    plain_seconds, plain_faults, plain_threads = run("plain")
    assert faults < 0.3 * plain_faults
    assert threads == plain_threads  # PyTorch's
    if (os.cpu_count() or 1) > 1:  # on one core NumPy has no threads
        assert seconds < 0.5 * plain_seconds
