"""A user's own --user-dir: a task that streams its training data, and the recorder."""

import recorder  # noqa: F401
import torch
from fairseq.data import iterators
from fairseq.tasks import register_task
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask


class Stream(torch.utils.data.IterableDataset):
    """One rank's part of a data set, in order."""

    def __init__(self, dataset, num_shards, shard_id):
        whole = len(dataset) - len(dataset) % num_shards
        self.dataset, self.ids = dataset, range(shard_id, whole, num_shards)

    def __iter__(self):
        return (self.dataset[i] for i in self.ids)

    def __len__(self):
        return len(self.ids)

    @property
    def first_batch(self):
        return "DUMMY"


@register_task("streaming_masked_lm", dataclass=MaskedLMConfig)
class StreamingMaskedLMTask(MaskedLMTask):
    """Its training data has no positions."""

    def get_batch_iterator(self, dataset, num_shards=1, shard_id=0, **kwargs):
        if dataset is not self.datasets["train"]:
            return super().get_batch_iterator(
                dataset, num_shards=num_shards, shard_id=shard_id, **kwargs
            )
        stream = Stream(dataset, num_shards, shard_id)
        return iterators.StreamingEpochBatchIterator(
            stream, max_sentences=8, collate_fn=dataset.collater, epoch=kwargs["epoch"]
        )
