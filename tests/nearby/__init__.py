"""A user's own --user-dir: averages that differ by rank, and a record of how a state came.

As with BatchNorm in fairseq, each rank has averages of its own, of the mini-batches that it has
seen. A line is written for each state that is loaded, and for the averages after each update.
"""

import hashlib
import json
import os

import recorder  # noqa: F401
import torch
import torch.distributed as dist
from fairseq.models.roberta import RobertaModel
from fairseq.trainer import Trainer

build_model = RobertaModel.build_model.__func__
load_checkpoint, train_step, irecv = Trainer.load_checkpoint, Trainer.train_step, dist.irecv
received = []


def with_averages(cls, args, task):
    model = build_model(cls, args, task)
    model.averages = torch.nn.BatchNorm1d(args.encoder_embed_dim, affine=False)
    embedding = model.encoder.sentence_encoder.embed_tokens
    embedding.register_forward_hook(lambda *call: see(model, call[-1]))
    return model


def see(model, x):
    model.averages(x.detach().flatten(0, 1))


def counted(tensor, *args):
    received.append(tensor.numel())
    return irecv(tensor, *args)


def bits_of(trainer):
    values = [*trainer.get_model().state_dict().values()]
    for state in trainer.optimizer.optimizer.state.values():
        values += [value for value in state.values() if torch.is_tensor(value)]
    return b"".join(value.detach().contiguous().numpy().tobytes() for value in values)


def averages_of(trainer):
    return trainer.get_model().averages.running_mean.tolist()


def tell(kind, **what):
    path = os.path.join(os.environ["FAIRSEQ_RECORD"], f"nearby_{os.getpid()}.jsonl")
    with open(path, "a") as file:
        file.write(json.dumps({"kind": kind, "time": 0, "rank": dist.get_rank(), **what}) + "\n")


def load_and_tell(trainer, *args, **kwargs):
    result = load_checkpoint(trainer, *args, **kwargs)
    bits = bits_of(trainer)
    tell(
        "loaded",
        update=trainer.get_num_updates(),
        digest=hashlib.sha256(bits).hexdigest(),
        averages=averages_of(trainer),
        share=sum(received) / len(bits),
    )
    return result


def train_and_tell(trainer, *args, **kwargs):
    result = train_step(trainer, *args, **kwargs)
    tell("averages", update=trainer.get_num_updates(), averages=averages_of(trainer))
    return result


RobertaModel.build_model = classmethod(with_averages)
Trainer.load_checkpoint, Trainer.train_step, dist.irecv = load_and_tell, train_and_tell, counted
