"""What W&B has written of a run in offline mode."""

import json
import struct
from pathlib import Path

HEADER, BLOCK = 7, 32 * 1024


def records(path: Path):
    """The records of a `.wandb` file: LevelDB's log format, with a header of 7 bytes of its own."""
    from wandb.proto import wandb_internal_pb2

    content = path.read_bytes()
    at, parts = HEADER, b""
    while at + HEADER <= len(content):
        if (left := BLOCK - at % BLOCK) < HEADER:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + HEADER])
        if kind == 0:
            at += left
            continue
        parts += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def runs(folder: Path):
    """Of each file, the oldest first: the run's id, its rows, and its exit code or None."""
    for path in sorted(folder.glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_ctime):
        name, rows, code = None, [], None
        for record in records(path):
            match record.WhichOneof("record_type"):
                case "run":
                    name = record.run.run_id
                case "exit":
                    code = record.exit.exit_code
                case "history":
                    items = record.history.item
                    rows.append(
                        {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
                    )
        yield name, rows, code
