"""A user's own --user-dir that starts CUDA on import, as some libraries do; and the recorder.

There is no GPU where tests run: torch only says what it would say then. There is one; in the
process that imports this CUDA can be used, and in none that is forked from it.
"""

import os
import time

import recorder
import torch

_STARTED_IN = os.getpid()

torch.cuda.device_count = lambda: 1
torch.cuda._is_in_bad_fork = lambda: os.getpid() != _STARTED_IN

if recorder.FOLDER:
    recorder.write({"kind": "imported", "pid": os.getpid(), "time": time.time()})
