"""redis-py against one server of either mode, with and without a password: `redis_py_handshake.py HOST PORT`.

Fails by exception; prints one line at the end.
"""

import sys

import redis
from redis.exceptions import AuthenticationError, ResponseError


def main(host, port):
    for protocol in (2, 3):
        client = redis.Redis(host=host, port=port, protocol=protocol, client_name="app", decode_responses=True)
        assert client.set("bar", protocol)
        assert client.get("bar") == str(protocol)
        assert client.client_getname() == "app"
        me = client.client_info()
        assert (me["name"], me["lib-name"]) == ("app", "redis-py"), me
        assert me["lib-ver"] == redis.__version__, me
        assert any(other["name"] == "app" for other in client.client_list())
        pipe = client.pipeline(transaction=False)
        pipe.incr("bar").get("bar").set("bar", "x", nx=True).delete("bar")
        assert pipe.execute() == [protocol + 1, str(protocol + 1), None, 1]
        assert client.config_get("timeout")["timeout"] == "0"

        client.config_set("requirepass", "secret")
        try:
            good = redis.Redis(host=host, port=port, protocol=protocol, password="secret")
            assert good.ping()
            for password in ("wrong", None):
                try:
                    redis.Redis(host=host, port=port, protocol=protocol, password=password).ping()
                    raise SystemExit(f"password {password} must not do")
                except (AuthenticationError, ResponseError):
                    pass
            # The connection that was there before still serves.
            assert client.ping()
        finally:
            redis.Redis(host=host, port=port, password="secret").config_set("requirepass", "")
        client.close()
    print(f"redis-py {redis.__version__}: ok")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
