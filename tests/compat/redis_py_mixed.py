"""A mixed workload by redis-py's RedisCluster: `redis_py_mixed.py HOST PORT SECONDS`.

What an application sees is what counts: any exception ends it, and so does any value that is not what was written. Prints one line at
the end.
"""

import sys
import threading
import time

import redis
from redis.cluster import RedisCluster

THREADS = 4


def work(client, thread, until, done):
    counters = [f"py:{thread}:counter:{n}" for n in range(8)]
    expected = dict.fromkeys(counters, 0)
    n = 0
    while time.monotonic() < until:
        n += 1
        key = f"py:{thread}:{n % 50}"
        assert client.set(key, n, ex=1000)
        assert int(client.get(key)) == n
        counter = counters[n % len(counters)]
        expected[counter] += 1
        assert client.incr(counter) == expected[counter], counter
        tag = f"{{py:{thread}:{n % 7}}}"
        assert client.mset({f"{tag}a": n, f"{tag}b": n})
        assert client.mget(f"{tag}a", f"{tag}b", f"{tag}c") == [str(n), str(n), None]
        if n % 10 == 0:
            pipe = client.pipeline()
            for i in range(10):
                pipe.set(f"py:{thread}:pipe:{i}", n)
            for i in range(10):
                pipe.get(f"py:{thread}:pipe:{i}")
            assert pipe.execute() == [True] * 10 + [str(n)] * 10
        if n % 20 == 0:
            assert client.delete(key) == 1
            assert client.exists(key) == 0
    assert {counter: int(client.get(counter) or 0) for counter in counters} == expected
    done[thread] = n


def main(host, port, seconds):
    client = RedisCluster(host=host, port=port, decode_responses=True)
    until = time.monotonic() + seconds
    done, failed = {}, []

    def guarded(thread):
        try:
            work(client, thread, until, done)
        except BaseException as error:
            failed.append(f"thread {thread}: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=guarded, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        sys.exit("\n".join(failed))
    print(f"redis-py {redis.__version__}: {sum(done.values())} rounds, no error: ok")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
