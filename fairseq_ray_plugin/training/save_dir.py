"""What a rank must know of the run's save dir beside its path, which is in fairseq's options."""

from __future__ import annotations

import dataclasses

from fairseq_ray_plugin.checkpoints import claim, claim_places


@dataclasses.dataclass(frozen=True)
class SaveDir:
    claim: int = 0
    """Number of the run's claim on it."""

    store: str = ""
    """Its URL, where it is in an object store; fairseq sees a folder instead."""

    passage: str = ""
    """A folder of this process's own on disk, for what comes from a store."""

    def is_overtaken(self, folder: str) -> bool:
        """Whether another run has taken it: nothing may be written into `folder` any more."""
        return claim.is_overtaken(claim_places.place_of(folder), self.claim)
