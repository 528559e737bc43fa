"""Who is next among those who wait, and who is refused."""

import pytest

from hebbline.serve.generation import Generation, GenerationRequest
from hebbline.serve.tickets import QueueFullError, Ticket
from hebbline.serve.waiting import WaitingQueue


@pytest.fixture
def make(byte_tokenizer):
    return lambda client: Ticket(Generation(GenerationRequest((1,), client=client), byte_tokenizer, ()), print)


def order(queue, running=None):
    names, running = [], dict(running or {})
    while (ticket := queue.first(running)) is not None:
        queue.remove(ticket)
        names.append(ticket.request.client)
        running[ticket.request.client] = running.get(ticket.request.client, 0) + 1
    return "".join(names)


def test_clients_take_turns_and_one_alone_is_served_in_order(make):
    queue = WaitingQueue(10)
    for client in "aaaabbc":
        queue.add(make(client))
    assert len(queue) == 7
    assert order(queue) == "abcabaa"
    assert len(queue) == 0


def test_who_has_more_running_waits(make):
    queue = WaitingQueue(10)
    for client in "aabb":
        queue.add(make(client))
    assert order(queue, {"a": 2}) == "bbaa"


def test_a_full_queue_refuses_the_latest_of_the_greediest(make):
    queue = WaitingQueue(4)
    greedy = [make("a") for _ in range(4)]
    for ticket in greedy:
        assert queue.add(ticket) is None
    with pytest.raises(QueueFullError, match="4 requests wait"):
        queue.add(make("a"))
    assert queue.add(make("b")) is greedy[3]
    assert queue.add(make("c")) is greedy[2]
    with pytest.raises(QueueFullError):
        queue.add(make("b"))
    assert order(queue) == "abca"


def test_who_was_running_comes_first(make):
    queue = WaitingQueue(2)
    waiting, back = make("b"), make("a")
    queue.add(waiting)
    queue.put_back(back)
    assert queue.first({"a": 9}) is back
    assert set(queue) == {waiting, back}
    assert queue.take_all(started=False) == [waiting]
    assert queue.take_all(started=True) == [back]
    assert len(queue) == 0


def test_a_queue_of_none_refuses(make):
    with pytest.raises(QueueFullError):
        WaitingQueue(0).add(make("a"))
