"""A graph classifier whose batches are objects of a class of its own."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class Graph:
    """One graph, or several side by side: nodes, edges, the graph of each node, and the labels of the graphs."""

    def __init__(self, x: Tensor, edges: Tensor, batch: Tensor, y: Tensor) -> None:
        self.x, self.edges, self.batch, self.y = x, edges, batch, y

    @property
    def num_graphs(self) -> int:
        return len(self.y)

    def to(self, device: Any, **settings: Any) -> "Graph":
        parts = (self.x, self.edges, self.batch, self.y)
        return Graph(*(part.to(device, **settings) for part in parts))


class Molecules(Dataset[Graph]):
    def __init__(self, n: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.graphs = [self._drawn(draw) for _ in range(n)]

    def _drawn(self, draw: torch.Generator) -> Graph:
        nodes = int(torch.randint(3, 7, (1,), generator=draw))
        x = torch.randn(nodes, 3, generator=draw)
        edges = torch.randint(nodes, (2, 2 * nodes), generator=draw)
        return Graph(x, edges, torch.zeros(nodes, dtype=torch.long), (x.sum()[None] > 0).long())

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, i: int) -> Graph:
        return self.graphs[i]


def side_by_side(graphs: list[Graph]) -> Graph:
    sizes = torch.tensor([len(one.x) for one in graphs])
    starts = sizes.cumsum(0) - sizes
    return Graph(
        torch.cat([one.x for one in graphs]),
        torch.cat([one.edges + start for one, start in zip(graphs, starts, strict=True)], 1),
        torch.arange(len(graphs)).repeat_interleave(sizes),
        torch.cat([one.y for one in graphs]),
    )


class Convolution(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.own, self.neighbours = nn.Linear(width, out), nn.Linear(width, out, bias=False)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        messages = torch.zeros_like(x).index_add(0, target, x[source])
        return torch.relu(self.own(x) + self.neighbours(messages))


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.lin = Convolution(3, 5), Convolution(5, 5), nn.Linear(5, 2)

    def forward(self, data: Graph) -> Tensor:
        x = self.second(self.first(data.x, data.edges), data.edges)
        pooled = x.new_zeros(data.num_graphs, x.shape[1]).index_add(0, data.batch, x)
        counts = torch.bincount(data.batch, minlength=data.num_graphs)
        return self.lin(pooled / counts[:, None])

    def training_step(self, data: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(data), data.y)
        self.log("train_loss", loss, batch_size=data.num_graphs)
        return loss

    def validation_step(self, data: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(data), data.y), batch_size=data.num_graphs)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.02)


class Data(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(Molecules(30, 0), batch_size=10, shuffle=True, collate_fn=side_by_side)

    def val_dataloader(self) -> Any:
        return DataLoader(Molecules(4, 1), batch_size=4, collate_fn=side_by_side)
