"""nginx as a server, as a reverse proxy to upstreams in the world and in the guest, and as root."""

from world.internet import LARGE
from world.namespaces import needs, needs_users

pytestmark = needs("nginx")

CONF = """
daemon off; worker_processes 2; pid nginx.pid; error_log stderr; {user}
events {{ worker_connections 512; }}
http {{
  access_log access.log; default_type text/plain;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  server {{
    listen {address}:{port};
    root {directory}/www;
    location = /address {{ return 200 "$remote_addr\\n"; }}
    {more}
  }}
}}
"""


def start(guest, port, more="", before="", directive="", **kw):
    """nginx in the foreground under a shell, `before` run first in the same guest."""
    www = guest.directory / "www"
    www.mkdir()
    (www / "page").write_text("from nginx\n")
    (www / "large").write_bytes(bytes(LARGE))
    address, directory = guest.world.host.addr4, guest.directory
    conf = CONF.format(address=address, port=port, directory=directory, more=more, user=directive)
    (directory / "nginx.conf").write_text(conf)
    nginx = f"exec nginx -p {directory}/ -c nginx.conf -e stderr"
    return guest.popen(["sh", "-c", f"{before}\n{nginx}"], listens=port, **kw)


def get(guest, port, path, *more):
    url = f"http://{guest.world.host.addr4}:{port}{path}"
    argv = ["curl", "-sS", "--fail", "--max-time", "20", *more, url]
    return guest.world.peer.run(argv, check=True).stdout


def test_server(guest):
    port = guest.port()
    with start(guest, port):
        assert get(guest, port, "/page") == "from nginx\n"
        assert get(guest, port, "/address") == guest.world.peer.addr4 + "\n"
        # Many connections, many requests on one connection, and a large answer.
        sizes = get(
            guest, port, "/large?[1-20]", "-Z", "-o", "/dev/null", "-w", "%{size_download}\n"
        )
        assert sizes.split() == [str(LARGE)] * 20
    guest.mediated(1, "listen", f":{port}")


def test_reverse_proxy_to_the_world(guest):
    port = guest.port()
    more = "location /world/ { proxy_pass http://v4only.test/; }"
    with start(guest, port, more):
        assert get(guest, port, "/world/") == "hello from the world\n"
        assert get(guest, port, "/world/address") == guest.world.host.addr4 + "\n"
        size = get(guest, port, "/world/large", "-o", "/dev/null", "-w", "%{size_download}")
        assert int(size) == LARGE
    guest.mediated(1, "listen", f":{port}")
    guest.mediated(3, "connect", "198.51.100.11:80")
    guest.mediated(1, "resolve", "v4only.test")


def test_reverse_proxy_into_the_guest(guest):
    port, inner = guest.port(), guest.port()
    more = f"location /guest/ {{ proxy_pass http://127.0.0.1:{inner}/; }}"
    # It ends with the shell that becomes nginx.
    python = f"setpriv --pdeathsig TERM {guest.world.python} -m http.server --bind 127.0.0.1 -d www {inner}"
    wait = f"until curl -s -o /dev/null http://127.0.0.1:{inner}/; do sleep 0.05; done"
    with start(guest, port, more, f"{python} 2>upstream.log &\n{wait}"):
        assert get(guest, port, "/guest/page") == "from nginx\n"
        size = get(guest, port, "/guest/large", "-o", "/dev/null", "-w", "%{size_download}")
        assert int(size) == LARGE
        # The upstream is the guest's own: the host's network does not have it.
        assert (inner in guest.world.host.listening()) == guest.native
    guest.mediated(1, "listen", f":{port}")


@needs_users()
def test_started_by_root_it_serves_as_another_user(guest):
    rule = f"listen:{guest.world.host.addr4}:80"
    directive = f"user {guest.world.user.name} {guest.world.user.name};"
    with start(guest, 80, directive=directive, options=("--allow", rule), user="root"):
        assert get(guest, 80, "/page") == "from nginx\n"
        workers = guest.world.host.run(["ps", "-C", "nginx", "-o", "uid="]).stdout.split()
        assert str(guest.world.user.uid) in workers
    guest.mediated(1, "listen", ":80")
