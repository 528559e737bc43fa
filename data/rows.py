"""Tensors whose rows are the examples of a data set.

Legend: I examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows(torch.utils.data.Dataset):
    """Examples by field, each a tensor [I, ...]; a batch is taken at once, without a pass over single examples."""

    fields: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.fields.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[index] for name, values in self.fields.items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The batch of these examples, which is what a data loader asks for where there is this method."""
        rows_B = torch.tensor(indices)
        return {name: values[rows_B] for name, values in self.fields.items()}


def as_is(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What a data loader is to do with a batch of `Rows`: nothing."""
    return batch
