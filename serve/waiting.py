"""Those who wait for a place in the batch, in an order that is fair between clients."""

from collections import deque
from collections.abc import Iterator, Mapping

from .tickets import QueueFullError, Ticket


class WaitingQueue:
    """A bounded queue for each client; whoever has the fewest requests running is next.

    Args:
        most: requests that may wait in all.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._queues: dict[str, deque[tuple[int, Ticket]]] = {}
        self._returned: deque[Ticket] = deque()
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._returned) + sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[Ticket]:
        yield from self._returned
        for queue in self._queues.values():
            yield from (ticket for _, ticket in queue)

    def add(self, ticket: Ticket) -> Ticket | None:
        """Let a request wait. Where the queue is full, a client with more of them loses its latest, which is returned.

        Raises:
            QueueFullError: the queue is full, and no other client has two more requests in it than this one.
        """
        refused = None
        if len(self) >= self._most:
            refused = self._latest_of_the_greediest(ticket.request.client)
            if refused is None:
                raise QueueFullError(f"{self._most} requests wait already: try again later")
        self._arrivals += 1
        self._queues.setdefault(ticket.request.client, deque()).append((self._arrivals, ticket))
        return refused

    def put_back(self, ticket: Ticket) -> None:
        """Let a request wait that was running; it comes before all that were not."""
        self._returned.appendleft(ticket)

    def first(self, running: Mapping[str, int]) -> Ticket | None:
        """Who is next: of the clients with the fewest requests running, the one that has waited longest."""
        if self._returned:
            return self._returned[0]
        heads = [(running.get(client, 0), *queue[0]) for client, queue in self._queues.items()]
        return min(heads, key=lambda head: head[:2])[2] if heads else None

    def remove(self, ticket: Ticket) -> None:
        """Take a request out."""
        if ticket in self._returned:
            self._returned.remove(ticket)
            return
        client = ticket.request.client
        kept = deque(entry for entry in self._queues[client] if entry[1] is not ticket)
        if kept:
            self._queues[client] = kept
        else:
            del self._queues[client]

    def take_all(self, *, started: bool) -> list[Ticket]:
        """Take out all who have not run yet, and those that have where `started`."""
        taken = [ticket for queue in self._queues.values() for _, ticket in queue]
        self._queues.clear()
        if started:
            taken += self._returned
            self._returned.clear()
        return taken

    def _latest_of_the_greediest(self, newcomer: str) -> Ticket | None:
        if not self._queues:
            return None
        client = max(self._queues, key=lambda name: len(self._queues[name]))
        if len(self._queues[client]) < len(self._queues.get(newcomer, ())) + 2:
            return None
        ticket = self._queues[client][-1][1]
        self.remove(ticket)
        return ticket
